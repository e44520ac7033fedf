//! The inbox: which events were handled.
//!
//! Promise: an event has its effect once, however often it is delivered. Inserting it in another transaction than
//! its effect breaks that promise; so does pruning sooner than Kafka may redeliver, as by a clock that jumped.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db::clock::{TICK_RETENTION, newest_tick};
use crate::db::retention;
use crate::unit_of_work::write_batch::WriteBatch;

/// How long entries are kept: longer than any topic (14 days) and any committed offset (21 days) can redeliver an
/// event. Republishing and the replay of a dead letter can redeliver it at any age: then the keys of the rows keep
/// its effect from happening twice.
pub const RETENTION: Duration = Duration::from_secs(30 * 24 * 3600);

const _: () = assert!(RETENTION.as_secs() < TICK_RETENTION.as_secs(), "ticks outlive the inbox");

/// Inserts events into the inbox. Returns those that were not there yet, and the time by the database's clock. The
/// others were handled before.
///
/// If another transaction is inserting one of them, this waits for its end. Ids are sorted, so that two batches wait
/// in one direction only. `attempts` is the number of this attempt, from 1; it is stored with each event.
pub async fn insert_new(
    tx: &mut PgConnection,
    events: &[(Uuid, &'static str)],
    attempts: i32,
) -> sqlx::Result<(HashSet<Uuid>, DateTime<Utc>)> {
    let events = sort_and_dedup(events);
    let (admitted, now): (Vec<Uuid>, DateTime<Utc>) = sqlx::query_as(concat!(
        "with admitted as (
             insert into inbox (event_id, topic, attempts, tick)
             select unnest($1::uuid[]), unnest($2::text[]), $3, ",
        newest_tick!(),
        " on conflict do nothing
             returning event_id)
         select array(select event_id from admitted), transaction_timestamp()"
    ))
    .bind(events.iter().map(|(event_id, _)| *event_id).collect::<Vec<_>>())
    .bind(events.iter().map(|(_, topic)| *topic).collect::<Vec<_>>())
    .bind(attempts)
    .fetch_one(tx)
    .await?;
    Ok((admitted.into_iter().collect(), now))
}

/// Inserts events together with their effect, which takes a round trip less than [`insert_new`]. If one of them is
/// a duplicate, the whole statement violates the unique key and fails.
pub(crate) fn insert(writes: &mut WriteBatch<'_>, events: &[(Uuid, &'static str)], attempts: i32) {
    if events.is_empty() {
        return;
    }
    let events = sort_and_dedup(events);
    writes
        .statement(concat!(
            "insert into inbox (event_id, topic, attempts, tick)
         select unnest($1::uuid[]), unnest($2::text[]), $3, ",
            newest_tick!()
        ))
        .bind(events.iter().map(|(event_id, _)| *event_id).collect::<Vec<_>>())
        .bind(events.iter().map(|(_, topic)| *topic).collect::<Vec<_>>())
        .bind(attempts);
}

/// The topics of those of these events that are in the inbox.
pub(crate) async fn topics_of(
    tx: &mut PgConnection,
    event_ids: &[Uuid],
) -> sqlx::Result<HashMap<Uuid, String>> {
    let topics = sqlx::query_as("select event_id, topic from inbox where event_id = any($1)");
    let topics: Vec<(Uuid, String)> = topics.bind(event_ids).fetch_all(tx).await?;
    Ok(topics.into_iter().collect())
}

/// Sorts the events and drops duplicates within the batch; the first of them stays.
fn sort_and_dedup(events: &[(Uuid, &'static str)]) -> Vec<(Uuid, &'static str)> {
    let mut events = events.to_vec();
    events.sort_by_key(|(event_id, _)| *event_id);
    events.dedup_by_key(|(event_id, _)| *event_id);
    events
}

/// Discarded events stay: republishing may redeliver an event at any age, and an event that an operator has
/// discarded, and written off, must never have its effect.
pub(crate) const PRUNE_STATEMENT: &str = "
    delete from inbox where event_id in (
        select event_id from inbox
        where tick < $1
          and not exists (select from dead_letters as letter
                          where letter.event_id = inbox.event_id and letter.state = 'discarded')
        order by tick limit $2)";

/// Deletes entries that are older than [`RETENTION`], for as long as the process runs.
pub(crate) async fn prune(db: PgPool) {
    retention::prune_forever(db, PRUNE_STATEMENT, RETENTION).await;
}
