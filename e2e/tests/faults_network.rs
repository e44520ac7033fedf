//! Faults of the ways between the services and what they depend on, each by a proxy.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::Order;
use e2e::load::{self, Load};
use e2e::outcome::Outcome;
use e2e::pairs::{Dependency, Pair, Pairs};
use e2e::proxy::Way;
use e2e::seed;
use e2e::topology::SERVICES;
use e2e::wait::eventually;
use tokio::time::{Instant, sleep, sleep_until};

use crate::stage::{DRAINED, SOON, Stage, all_end, basket, place_all, rich, through_proxies};

/// F15.
#[tokio::test(flavor = "multi_thread")]
async fn commits_whose_answers_are_cut_off_happen_once_and_clients_learn_the_truth() -> Result<()> {
    through_proxies(async |Stage { client, .. }, pairs| {
        let lasting = Duration::from_secs(60);
        let load = Load { rate: 50, lasting, drained_within: DRAINED, ..Load::default() };
        let (summary, ()) = load::run_while(client, &load, async {
            sleep(Duration::from_secs(1)).await;
            let ways = SERVICES.map(|service| pairs.proxy(service, Dependency::Database));
            for way in ways {
                way.set(Way { commits_cut_percent: 30, ..Way::default() });
            }
            sleep(Duration::from_secs(5)).await;
            for way in ways {
                eventually("some commits to be cut", SOON, async || {
                    ensure!(way.commits_cut() >= 5, "only {}", way.commits_cut());
                    Ok(())
                })
                .await?;
            }
            ways.iter().for_each(|way| way.heal());
            Ok(())
        })
        .await?;
        ensure!(summary.holds(), "{}", summary.lines().join("\n"));
        ensure!(summary.confirmed > 100, "{}", summary.lines().join("\n"));
        Ok(())
    })
    .await
}

/// How long what was on its way when a pair was cut may take to arrive.
const UNDER_WAY: Duration = Duration::from_secs(1);

/// Longer than a service goes on trying to store something.
const STORED_WITHIN: Duration = Duration::from_secs(5);

/// The five ways in which a pair fails: cut, half open either way, refused, and slow.
pub fn ways() -> [Way; 5] {
    let ms = Duration::from_millis;
    [
        Way::black_hole(),
        Way { holds_requests: true, ..Way::default() },
        Way { holds_answers: true, ..Way::default() },
        Way { refuses: true, ..Way::default() },
        Way { latency: ms(200), jitter: ms(100), ..Way::default() },
    ]
}

/// Cuts one pair for so long at least, while everything else goes on. Answers the order that was
/// placed meanwhile.
pub async fn cut(
    stage: &Stage,
    pairs: &Pairs,
    pair: &Pair,
    way: Way,
    lasting: Duration,
) -> Result<Option<Order>> {
    let Stage { client, .. } = stage;
    let (proxy, before) = (pairs.of(pair), pairs.of(pair).carried());
    all_end(client, &place_all(client, 1).await?).await?;
    // Known schemas are not asked for again.
    let has_traffic = pair.dependency != Dependency::Registry;
    ensure!(!has_traffic || proxy.carried() > before, "{pair}: an order passes by the proxy");
    let mended_at = Instant::now() + lasting;
    proxy.set(way);
    if way.refuses {
        proxy.reset();
    }
    sleep(UNDER_WAY).await;
    let before = proxy.carried();
    let went_on = goes_on_without(stage, pair, way).await;
    sleep_until(mended_at).await;
    let carried = proxy.carried() - before;
    proxy.heal();
    let went_on = went_on.with_context(|| format!("{pair}: {way:?}"))?;
    let is_shut = way.refuses || way == Way::black_hole();
    ensure!(!is_shut || carried == 0, "{pair}: {carried} bytes passed while it was {way:?}");
    Ok(went_on)
}

/// How far an order gets while one pair is cut: whoever can answer does, and nobody else. Orders are
/// accepted unless it is order's own database.
async fn goes_on_without(stage: &Stage, pair: &Pair, way: Way) -> Result<Option<Order>> {
    let Stage { client, .. } = stage;
    let is_slow = !way.latency.is_zero();
    if (&*pair.service, pair.dependency) == ("order", Dependency::Database) {
        for other in ["payment", "stock"] {
            eventually(&format!("{other} to store something"), STORED_WITHIN, async || {
                let outcome = seed::anything(client, other).await;
                ensure!(matches!(outcome, Some(Outcome::Ok(_))), "{outcome:?}");
                Ok(())
            })
            .await?;
        }
        let outcome = seed::anything(client, "order").await;
        ensure!(is_slow || !matches!(outcome, Some(Outcome::Ok(_))), "stored by another way");
        return Ok(None);
    }
    let order = client.placed(rich(), &basket()).await?;
    let is_cut = pair.dependency != Dependency::Registry && !is_slow;
    let is_held = |service| is_cut && (pair.service == "order" || pair.service == service);
    eventually(&format!("the others to answer while {pair} are cut"), SOON, async || {
        let now = client.order(order.order_id).await?;
        ensure!(is_held("payment") || now.payment == "verified", "{now:?}");
        ensure!(is_held("stock") || now.stock == "reserved", "{now:?}");
        Ok(())
    })
    .await?;
    sleep(UNDER_WAY).await;
    let now = client.order(order.order_id).await?;
    ensure!(!is_held("payment") || now.payment == "waiting", "it came all the same: {now:?}");
    ensure!(!is_held("stock") || now.stock == "waiting", "it came all the same: {now:?}");
    Ok(Some(order))
}

/// F39, the nine pairs, each in one of the five ways; all of them are in `faults_long.rs`.
#[tokio::test(flavor = "multi_thread")]
async fn whichever_pair_is_cut_the_others_go_on_and_all_orders_end_when_it_is_mended() -> Result<()>
{
    through_proxies(async |stage, pairs| {
        let mut orders = Vec::new();
        for (pair, way) in Pair::all().iter().zip(ways().into_iter().cycle()) {
            orders.extend(cut(stage, pairs, pair, way, Duration::from_secs(2)).await?);
        }
        all_end(&stage.client, &orders).await
    })
    .await
}

/// That there is no way around a proxy: with all of them shut nothing reaches a service, by
/// whatever address Kafka tells it.
#[tokio::test(flavor = "multi_thread")]
async fn no_service_finds_a_way_around_its_proxies() -> Result<()> {
    through_proxies(async |Stage { stack, client }, pairs| {
        all_end(client, &place_all(client, 5).await?).await?;
        let shut = |service: &str, dependency| {
            let proxy = pairs.proxy(service, dependency);
            proxy.set(Way { refuses: true, ..Way::default() });
            proxy.reset();
            proxy.carried()
        };
        let before: Vec<u64> =
            SERVICES.iter().map(|service| shut(service, Dependency::Kafka)).collect();
        ensure!(before.iter().all(|bytes| *bytes > 0), "{before:?}");
        let orders = place_all(client, 5).await?;
        sleep(Duration::from_secs(4)).await;
        for order in &orders {
            let order = client.order(order.order_id).await?;
            ensure!(
                (&*order.payment, &*order.stock) == ("waiting", "waiting"),
                "it came by another way: {order:?}"
            );
        }
        for service in SERVICES {
            ensure!(shut(service, Dependency::Database) > 0, "{service} has another way");
            let began = Instant::now();
            let outcome = seed::anything(client, service).await;
            ensure!(!matches!(outcome, Some(Outcome::Ok(_))), "{service} stored by another way");
            ensure!(began.elapsed() < SOON, "a client waited {:?}", began.elapsed());
            ensure!(stack.is_running(service).await?, "{service} lives");
        }
        pairs.heal();
        all_end(client, &orders).await?;

        // Whoever starts knows no schema, and has to ask.
        for service in SERVICES {
            stack.stop(service).await?;
            ensure!(shut(service, Dependency::Registry) > 0, "{service} has another way");
            stack.start(service).await?;
        }
        let orders = place_all(client, 5).await?;
        sleep(Duration::from_secs(4)).await;
        for order in &orders {
            let order = client.order(order.order_id).await?;
            let legs = (&*order.payment, &*order.stock);
            ensure!(legs == ("waiting", "waiting"), "asked by another way: {order:?}");
        }
        pairs.heal();
        all_end(client, &orders).await
    })
    .await
}
