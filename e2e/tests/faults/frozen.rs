//! A process that is frozen, and resumes after another one has taken its place.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::metrics::Metrics;
use e2e::scenarios::redelivery;
use faults::database_faults;
use launcher::eventually;
use tokio::time::sleep;

use crate::fixture::*;

/// How long a table is locked to keep an instance inside a batch: less than its lock timeout.
const LOCK_DURATION: Duration = Duration::from_millis(1_500);

/// F21: frozen beyond its session with Kafka and the relay's lock, so that the other instance has
/// its partitions when it resumes in the middle of a transaction.
pub async fn freeze_under_load(fixture: &Fixture, seconds: u64) -> Result<()> {
    start_two_of_each(fixture).await?;
    let lasting = seconds + 10;
    under_load_without_errors(&fixture.client, 50, lasting, async {
        sleep(Duration::from_secs(1)).await;
        let woken = |service| Box::pin(freeze_and_resume(fixture, service, seconds));
        let [payment, stock] = ["payment", "stock"].map(woken);
        tokio::try_join!(payment, stock).map(drop)
    })
    .await
}

/// Freezes the instance with the active relay while it writes, and resumes it when the other one
/// has its partitions and the relay. The other instance has handled its events by then, and it must
/// detect that.
async fn freeze_and_resume(fixture: &Fixture, service: &'static str, seconds: u64) -> Result<()> {
    let Fixture { stack, client } = fixture;
    let name = active_relay_instance(fixture, service).await?;
    let deduplicated = async || -> Result<f64> {
        let metrics = Metrics::fetch(stack, client, &name).await?;
        Ok(metrics.sum("events_deduplicated_total").unwrap_or_default())
    };
    let before = deduplicated().await?;
    eventually("the instance to wait for a lock, and be frozen", TIMEOUT, async || {
        let freeze = async {
            // Both consumers, with the events that they have read, and the relay.
            let all_wait = async || {
                let waiting = database_faults::count_lock_waiters(stack, service).await?;
                ensure!(waiting >= 3, "{waiting} sessions wait");
                Ok(())
            };
            // Early enough to freeze it before the lock ends.
            eventually("all sessions to wait", LOCK_DURATION / 2, all_wait).await?;
            stack.pause(&name).await
        };
        let (locked, frozen) =
            tokio::join!(database_faults::lock_outbox(stack, service, LOCK_DURATION), freeze);
        locked.and(frozen)
    })
    .await?;
    sleep(Duration::from_secs(seconds)).await;
    let done = async {
        let ends = redelivery::group_positions(client, service).await?;
        wait_until_replaced(fixture, service, &name).await?;
        eventually(&format!("{service} to handle every record"), TIMEOUT, async || {
            let now = redelivery::group_positions(client, service).await?;
            let left = ends.iter().zip(&now).filter(|((_, end), (next, _))| next < end).count();
            ensure!(left == 0, "{left} partitions have unhandled records");
            Ok(())
        })
        .await
    }
    .await;
    stack.resume(&name).await?;
    done?;
    // Otherwise it was frozen without a batch.
    let what = format!("{name} to find its events already handled");
    wait_for(&what, TIMEOUT, deduplicated, |now| *now > before).await.map(drop)
}

/// Waits until the other instance has all partitions and the active relay.
async fn wait_until_replaced(fixture: &Fixture, service: &str, frozen: &str) -> Result<()> {
    eventually(&format!("another instance to take the place of {frozen}"), TIMEOUT, async || {
        let shares = group_assignments(fixture.stack.kafka_client()?, service.to_string()).await?;
        let all = shares.iter().map(Vec::len).eq([subscribed_partitions(service)]);
        ensure!(all, "{shares:?}");
        let now = active_relay_instance(fixture, service).await?;
        ensure!(now != frozen, "{frozen} still relays");
        Ok(())
    })
    .await
}
