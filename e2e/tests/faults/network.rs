//! Faults of the links between the services and their dependencies, each by a proxy.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::order::Order;
use e2e::client::outcome::Outcome;
use e2e::stack_description::SERVICES;
use e2e::workload::seed;
use events::participants::{Answers, WAITING, leg_state, participants};
use faults::faulty_network::Toxics;
use faults::links::{Dependency, Link, Links};
use tokio::time::{Instant, sleep, sleep_until};

use crate::fixture::*;

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
    confirm_orders(client, 1).await?;
    // Known schemas are not requested again.
    let has_traffic = pair.dependency != Dependency::Registry;
    let is_passed = proxy.bytes_forwarded() > before;
    ensure!(!has_traffic || is_passed, "{pair}: an order bypasses the proxy");
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
        let is_stored = |outcome: &Option<Outcome>| matches!(outcome, Some(Outcome::Ok(_)));
        for other in ["payment", "stock"] {
            let store = async || Ok(seed::send_any_command(client, other).await);
            let what = format!("{other} to store something");
            wait_for(&what, STORE_TIMEOUT, store, is_stored).await?;
        }
        let outcome = seed::send_any_command(client, "order").await;
        ensure!(is_slow || !is_stored(&outcome), "the order was stored without the proxy");
        return Ok(None);
    }
    let order = client.place_until_accepted(rich_customer(), &basket()).await?;
    let is_cut = pair.dependency != Dependency::Registry && !is_slow;
    let is_held = |service| is_cut && (pair.service == "order" || pair.service == service);
    let what = format!("the other services to respond while {pair} are cut");
    let orders = std::slice::from_ref(&order);
    wait_until_each(client, orders, &what, |now| {
        let has_accepted = |it: &Answers| now.leg(it.service) == leg_state(it.accepted);
        participants().iter().all(|it| is_held(it.service) || has_accepted(it))
    })
    .await?;
    sleep(IN_FLIGHT_TIME).await;
    let now = client.get_order(order.order_id).await?;
    for service in participants().map(|it| it.service) {
        let is_open = now.leg(service) == WAITING;
        ensure!(!is_held(service) || is_open, "{service} responded in spite of it: {now:?}");
    }
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
