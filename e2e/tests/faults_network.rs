//! Faults of the ways between the services and what they depend on, each by a proxy.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::{Order, eventually};
use e2e::load::{self, Load};
use e2e::pairs::{Dependency, Pair};
use e2e::proxy::Way;
use e2e::topology::SERVICES;
use tokio::time::{Instant, sleep};

use crate::stage::{DRAINED, SOON, Stage, all_end, basket, place_all, rich, through_proxies};

/// F15.
#[tokio::test(flavor = "multi_thread")]
async fn commits_whose_answers_are_cut_off_happen_once_and_clients_learn_the_truth() -> Result<()> {
    through_proxies(async |Stage { client, .. }, pairs| {
        let lasting = Duration::from_secs(8);
        let load = Load { rate: 50, lasting, drained_within: DRAINED, ..Load::default() };
        let (summary, ()) = load::run(client, &load, async {
            sleep(Duration::from_secs(1)).await;
            let ways = SERVICES.map(|service| pairs.proxy(service, Dependency::Database));
            for way in ways {
                way.set(Way { commits_cut_percent: 30, ..Way::default() });
            }
            sleep(Duration::from_secs(5)).await;
            for way in ways {
                way.heal();
                ensure!(way.commits_cut() >= 5, "only {} commits were cut", way.commits_cut());
            }
            Ok(())
        })
        .await?;
        ensure!(summary.holds(), "{}", summary.lines().join("\n"));
        ensure!(summary.confirmed > 100, "{}", summary.lines().join("\n"));
        Ok(())
    })
    .await
}

/// How far an order gets while one pair is cut: the other participant's answer comes, and orders are
/// accepted unless it is order's own database.
async fn goes_on_without(stage: &Stage, pair: &Pair) -> Result<Option<Order>> {
    let Stage { client, .. } = stage;
    let is_needed = pair.dependency == Dependency::Database;
    if pair.service == "order" && is_needed {
        let items = client.read::<serde_json::Value>("stock", "/items").await;
        items.context("stock answers")?;
        return Ok(None);
    }
    let order = client.placed(rich(), &basket()).await?;
    let other = match (&*pair.service, pair.dependency) {
        // Known schemas are not asked for again.
        (_, Dependency::Registry) => "both",
        ("payment", _) => "stock",
        ("stock", _) => "payment",
        // Nothing goes out.
        _ => return Ok(Some(order)),
    };
    eventually(&format!("{other} to answer while {pair} are cut"), SOON, async || {
        let now = client.order(order.order_id).await?;
        let paid = now.payment == "verified" || other == "stock";
        let reserved = now.stock == "reserved" || other == "payment";
        ensure!(paid && reserved, "{now:?}");
        Ok(())
    })
    .await?;
    Ok(Some(order))
}

/// F39, the nine pairs: cut, half open either way, and slow.
#[tokio::test(flavor = "multi_thread")]
async fn whichever_pair_is_cut_the_others_go_on_and_all_orders_end_when_it_is_mended() -> Result<()>
{
    through_proxies(async |stage, pairs| {
        let Stage { stack, client } = stage;
        all_end(client, &place_all(client, 10).await?).await?;
        let died_before = stack.ends().await?.len();
        let ms = Duration::from_millis;
        let ways = [
            Way::black_hole(),
            Way { holds_requests: true, ..Way::default() },
            Way { holds_answers: true, ..Way::default() },
            Way { refuses: true, ..Way::default() },
            Way { latency: ms(200), jitter: ms(100), ..Way::default() },
        ];
        let mut orders = Vec::new();
        for (nth, pair) in Pair::all().iter().enumerate() {
            let proxy = pairs.of(pair);
            let way = ways[nth % ways.len()];
            proxy.set(way);
            if way.refuses {
                proxy.reset();
            }
            let went_on = goes_on_without(stage, pair).await;
            let went_on = went_on.with_context(|| format!("{pair}: {way:?}"));
            sleep(Duration::from_secs(1)).await;
            proxy.heal();
            orders.extend(went_on?);
        }
        all_end(client, &orders).await?;
        let ends = stack.ends().await?.split_off(died_before);
        ensure!(ends.is_empty(), "nobody ends because of a cut: {ends:?}");
        Ok(())
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
        shut("order", Dependency::Database);
        let began = Instant::now();
        ensure!(client.placed(rich(), &basket()).await.is_err(), "stored by another way");
        ensure!(began.elapsed() < SOON, "a client waited {:?}", began.elapsed());
        ensure!(stack.is_running("order").await?, "it lives");
        pairs.heal();
        all_end(client, &orders).await
    })
    .await
}
