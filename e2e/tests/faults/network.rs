//! Faults of the links between the services and their dependencies, each by a proxy.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::order::Order;
use e2e::client::outcome::Outcome;
use e2e::stack_description::SERVICES;
use e2e::workload::load;
use e2e::workload::options::Load;
use e2e::workload::seed;
use faults::faulty_network::Toxics;
use faults::links::{Dependency, Link, Links};
use launcher::eventually;
use tokio::time::{Instant, sleep, sleep_until};

use crate::fixture::{
    DRAIN_TIMEOUT, Fixture, TIMEOUT, basket, place_orders, rich_customer, through_proxies,
    wait_until_confirmed,
};

/// F15.
#[tokio::test(flavor = "multi_thread")]
async fn commits_whose_answers_are_cut_off_happen_once_and_clients_learn_the_truth() -> Result<()> {
    through_proxies(async |Fixture { client, .. }, pairs| {
        let duration = Duration::from_secs(60);
        let load = Load { rate: 50, duration, drain_timeout: DRAIN_TIMEOUT, ..Load::default() };
        let (summary, ()) = load::run_while(client, &load, async {
            sleep(Duration::from_secs(1)).await;
            let proxies = SERVICES.map(|service| pairs.proxy(service, Dependency::Database));
            for way in proxies {
                way.set_toxics(Toxics { commit_cut_percent: 30, ..Toxics::default() });
            }
            sleep(Duration::from_secs(5)).await;
            for way in proxies {
                eventually("some commits to be cut", TIMEOUT, async || {
                    ensure!(way.commits_cut() >= 5, "only {}", way.commits_cut());
                    Ok(())
                })
                .await?;
            }
            proxies.iter().for_each(|way| way.heal());
            Ok(())
        })
        .await?;
        ensure!(summary.holds(), "{}", summary.lines().join("\n"));
        ensure!(summary.confirmed > 100, "{}", summary.lines().join("\n"));
        Ok(())
    })
    .await
}

/// How long bytes in flight when a link is cut may take to arrive.
const IN_FLIGHT_TIME: Duration = Duration::from_secs(1);

/// Longer than a service tries to store a command.
const STORE_TIMEOUT: Duration = Duration::from_secs(5);

/// The five failures of a link: cut, half open in either direction, refused, and slow.
pub fn toxics() -> [Toxics; 5] {
    let ms = Duration::from_millis;
    [
        Toxics::black_hole(),
        Toxics { holds_requests: true, ..Toxics::default() },
        Toxics { holds_responses: true, ..Toxics::default() },
        Toxics { refuses_connections: true, ..Toxics::default() },
        Toxics { latency: ms(200), jitter: ms(100), ..Toxics::default() },
    ]
}

/// Cuts one link for at least this time, while everything else continues. Returns the order that
/// was placed meanwhile.
pub async fn cut_link(
    fixture: &Fixture,
    pairs: &Links,
    pair: &Link,
    way: Toxics,
    lasting: Duration,
) -> Result<Option<Order>> {
    let Fixture { client, .. } = fixture;
    let (proxy, before) = (pairs.get(pair), pairs.get(pair).bytes_forwarded());
    wait_until_confirmed(client, &place_orders(client, 1).await?).await?;
    // Known schemas are not requested again.
    let has_traffic = pair.dependency != Dependency::Registry;
    ensure!(
        !has_traffic || proxy.bytes_forwarded() > before,
        "{pair}: an order bypasses the proxy"
    );
    let restored_at = Instant::now() + lasting;
    proxy.set_toxics(way);
    if way.refuses_connections {
        proxy.reset_connections();
    }
    sleep(IN_FLIGHT_TIME).await;
    let before = proxy.bytes_forwarded();
    let order = order_while_cut(fixture, pair, way).await;
    sleep_until(restored_at).await;
    let carried = proxy.bytes_forwarded() - before;
    proxy.heal();
    let order = order.with_context(|| format!("{pair}: {way:?}"))?;
    let is_shut = way.refuses_connections || way == Toxics::black_hole();
    ensure!(!is_shut || carried == 0, "{pair}: {carried} bytes passed while it was {way:?}");
    Ok(order)
}

/// How far an order gets while one link is cut: exactly the services that are not affected respond.
/// Orders are accepted unless the link is that of the order service's own database.
async fn order_while_cut(fixture: &Fixture, pair: &Link, way: Toxics) -> Result<Option<Order>> {
    let Fixture { client, .. } = fixture;
    let is_slow = !way.latency.is_zero();
    if (&*pair.service, pair.dependency) == ("order", Dependency::Database) {
        for other in ["payment", "stock"] {
            eventually(&format!("{other} to store something"), STORE_TIMEOUT, async || {
                let outcome = seed::send_any_command(client, other).await;
                ensure!(matches!(outcome, Some(Outcome::Ok(_))), "{outcome:?}");
                Ok(())
            })
            .await?;
        }
        let outcome = seed::send_any_command(client, "order").await;
        ensure!(
            is_slow || !matches!(outcome, Some(Outcome::Ok(_))),
            "the order was stored without the proxy"
        );
        return Ok(None);
    }
    let order = client.place_until_accepted(rich_customer(), &basket()).await?;
    let is_cut = pair.dependency != Dependency::Registry && !is_slow;
    let is_held = |service| is_cut && (pair.service == "order" || pair.service == service);
    eventually(
        &format!("the other services to respond while {pair} are cut"),
        TIMEOUT,
        async || {
            let now = client.get_order(order.order_id).await?;
            ensure!(is_held("payment") || now.payment == "verified", "{now:?}");
            ensure!(is_held("stock") || now.stock == "reserved", "{now:?}");
            Ok(())
        },
    )
    .await?;
    sleep(IN_FLIGHT_TIME).await;
    let now = client.get_order(order.order_id).await?;
    ensure!(
        !is_held("payment") || now.payment == "waiting",
        "the response arrived in spite of the cut: {now:?}"
    );
    ensure!(
        !is_held("stock") || now.stock == "waiting",
        "the response arrived in spite of the cut: {now:?}"
    );
    Ok(Some(order))
}

/// F39, a link to each kind of dependency, of another service each; `faults/long` has all links and all failures.
#[tokio::test(flavor = "multi_thread")]
async fn whichever_dependency_is_cut_off_the_others_go_on_and_all_orders_end_afterwards()
-> Result<()> {
    through_proxies(async |fixture, pairs| {
        let mut orders = Vec::new();
        let links = Link::all(&SERVICES);
        // A service has three of them, so the fourth is the next service's link to the next dependency.
        for (pair, way) in links.iter().step_by(4).zip(toxics()) {
            orders.extend(cut_link(fixture, pairs, pair, way, Duration::from_secs(2)).await?);
        }
        wait_until_confirmed(&fixture.client, &orders).await
    })
    .await
}

/// Proves that no traffic bypasses a proxy: with all proxies shut, nothing reaches a service, at
/// any address that Kafka advertises.
#[tokio::test(flavor = "multi_thread")]
async fn no_service_can_bypass_its_proxies() -> Result<()> {
    through_proxies(async |Fixture { stack, client }, pairs| {
        wait_until_confirmed(client, &place_orders(client, 5).await?).await?;
        let shut = |service: &str, dependency| {
            let proxy = pairs.proxy(service, dependency);
            proxy.set_toxics(Toxics { refuses_connections: true, ..Toxics::default() });
            proxy.reset_connections();
            proxy.bytes_forwarded()
        };
        let before: Vec<u64> =
            SERVICES.iter().map(|service| shut(service, Dependency::Kafka)).collect();
        ensure!(before.iter().all(|bytes| *bytes > 0), "{before:?}");
        let orders = place_orders(client, 5).await?;
        sleep(Duration::from_secs(4)).await;
        for order in &orders {
            let order = client.get_order(order.order_id).await?;
            ensure!(
                (&*order.payment, &*order.stock) == ("waiting", "waiting"),
                "a response bypassed the proxies: {order:?}"
            );
        }
        for service in SERVICES {
            ensure!(shut(service, Dependency::Database) > 0, "{service} bypasses its proxy");
            let began = Instant::now();
            let outcome = seed::send_any_command(client, service).await;
            ensure!(
                !matches!(outcome, Some(Outcome::Ok(_))),
                "{service} stored an order without its proxy"
            );
            ensure!(began.elapsed() < TIMEOUT, "a client waited {:?}", began.elapsed());
            ensure!(stack.is_running(service).await?, "{service} lives");
        }
        pairs.heal();
        wait_until_confirmed(client, &orders).await?;

        // A service that starts has no schemas, and must request them.
        for service in SERVICES {
            stack.stop(service).await?;
            ensure!(shut(service, Dependency::Registry) > 0, "{service} bypasses its proxy");
            stack.start(service).await?;
        }
        let orders = place_orders(client, 5).await?;
        sleep(Duration::from_secs(4)).await;
        for order in &orders {
            let order = client.get_order(order.order_id).await?;
            let legs = (&*order.payment, &*order.stock);
            ensure!(
                legs == ("waiting", "waiting"),
                "a schema request bypassed the proxies: {order:?}"
            );
        }
        pairs.heal();
        wait_until_confirmed(client, &orders).await
    })
    .await
}
