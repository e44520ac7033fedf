//! Links that are cut for long, commits whose answers are cut off, and the proof that nothing bypasses the proxies.

use e2e::client::outcome::Outcome;
use e2e::workload::{load, seed};
use faults::faulty_network::Toxics;
use faults::links::{Dependency, Link};

use super::*;
use crate::faults::network::{cut_link, toxics};

/// F15.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn commits_whose_answers_are_cut_off_happen_once_and_clients_learn_the_truth() -> Result<()> {
    through_proxies(async |Fixture { client, .. }, pairs| {
        let (summary, ()) = load::run_while(client, &load_of(50, 60), async {
            sleep(Duration::from_secs(1)).await;
            let proxies = SERVICES.map(|service| pairs.proxy(service, Dependency::Database));
            for way in proxies {
                way.set_toxics(Toxics { commit_cut_percent: 30, ..Toxics::default() });
            }
            sleep(Duration::from_secs(5)).await;
            for way in proxies {
                let cut = async || Ok(way.commits_cut());
                wait_for("some commits to be cut", TIMEOUT, cut, |cut| *cut >= 5).await?;
            }
            proxies.iter().for_each(|way| way.heal());
            Ok(())
        })
        .await?;
        ensure!(summary.holds() && summary.confirmed > 100, "{}", summary.lines().join("\n"));
        Ok(())
    })
    .await
}

/// Proves that no traffic bypasses a proxy: with all proxies shut, nothing reaches a service, at
/// any address that Kafka advertises.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn no_service_can_bypass_its_proxies() -> Result<()> {
    through_proxies(async |Fixture { stack, client }, pairs| {
        confirm_orders(client, 5).await?;
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
        assert_unanswered(client, &orders, "a response bypassed the proxies").await?;
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
        assert_unanswered(client, &orders, "a schema request bypassed the proxies").await?;
        pairs.heal();
        wait_until_confirmed(client, &orders).await
    })
    .await
}

/// F39. Each kind of failure at each kind of dependency, at one service each, and all three
/// dependencies at every service.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes five minutes: make faults"]
async fn whichever_link_is_cut_for_long_in_whichever_way_the_others_go_on() -> Result<()> {
    through_proxies(async |fixture, pairs| {
        let mut orders = Vec::new();
        for (nth, way) in toxics().into_iter().enumerate() {
            for (further, dependency) in Dependency::ALL.into_iter().enumerate() {
                let pair = Link::new(SERVICES[(nth + further) % SERVICES.len()], dependency);
                orders.extend(cut_link(fixture, pairs, &pair, way, Duration::from_secs(15)).await?);
            }
        }
        wait_until_confirmed(&fixture.client, &orders).await
    })
    .await
}
