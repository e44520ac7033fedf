//! The inbox: which events were handled.
//!
//! Promise: an event has its effect once, however often it is delivered. Two things break that promise: an entry
//! that is inserted in another transaction than the effect, and an entry that is pruned while Kafka may still
//! redeliver the event, for example because a clock jumped.

use std::collections::HashMap;
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

/// Inserts events together with their effect. If one of them is there already, the whole statement violates the
/// unique key and fails. If another transaction is inserting one of them, the statement waits for its end; ids are
/// sorted, so that two batches wait in one direction only. `attempts` is the number of this attempt, from 1.
pub fn insert(
    writes: &mut WriteBatch<'_>,
    events: impl IntoIterator<Item = (Uuid, &'static str)>,
    attempts: i32,
) {
    let mut events = Vec::from_iter(events);
    if events.is_empty() {
        return;
    }
    events.sort_unstable();
    let (event_ids, topics): (Vec<Uuid>, Vec<&str>) = events.into_iter().unzip();
    writes
        .statement(concat!(
            "insert into chassis.inbox (event_id, topic, attempts, tick)
         select unnest($1::uuid[]), unnest($2::text[]), $3, ",
            newest_tick!()
        ))
        .bind(event_ids)
        .bind(topics)
        .bind(attempts);
}

/// Inserts one event, unless it is there already; returns whether it was new. If another transaction is inserting
/// it, this waits for its end.
pub async fn insert_if_new(
    tx: &mut PgConnection,
    (event_id, topic): (Uuid, &'static str),
    attempts: i32,
) -> sqlx::Result<bool> {
    let inserted = sqlx::query(concat!(
        "insert into chassis.inbox (event_id, topic, attempts, tick) select $1, $2, $3, ",
        newest_tick!(),
        " on conflict do nothing"
    ))
    .bind(event_id)
    .bind(topic)
    .bind(attempts)
    .execute(tx)
    .await?;
    Ok(inserted.rows_affected() > 0)
}

/// Finds which of these events are in the inbox, each with its topic.
pub async fn topics_of(
    tx: &mut PgConnection,
    event_ids: Vec<Uuid>,
) -> sqlx::Result<HashMap<Uuid, String>> {
    if event_ids.is_empty() {
        return Ok(HashMap::new());
    }
    let topics =
        sqlx::query_as("select event_id, topic from chassis.inbox where event_id = any($1)");
    let topics: Vec<(Uuid, String)> = topics.bind(event_ids).fetch_all(tx).await?;
    Ok(topics.into_iter().collect())
}

/// When each of these events was handled and after how many attempts, if it was.
pub async fn find(
    db: &PgPool,
    event_ids: &[Uuid],
) -> sqlx::Result<HashMap<Uuid, (DateTime<Utc>, i32)>> {
    let entries: Vec<(Uuid, DateTime<Utc>, i32)> = sqlx::query_as(
        "select event_id, received_at, attempts from chassis.inbox where event_id = any($1)",
    )
    .bind(event_ids)
    .fetch_all(db)
    .await?;
    Ok(entries.into_iter().map(|(event_id, at, attempts)| (event_id, (at, attempts))).collect())
}

/// The entries of discarded events are kept: republishing may redeliver an event at any age, and an event that an
/// operator has discarded must never have its effect.
pub const PRUNE_STATEMENT: &str = "
    delete from chassis.inbox where event_id in (
        select event_id from chassis.inbox
        where tick < $1
          and not exists (select from chassis.dead_letters as letter
                          where letter.event_id = inbox.event_id and letter.state = 'discarded')
        order by tick limit $2)";

/// Deletes entries that are older than [`RETENTION`], for as long as the process runs.
pub(crate) async fn prune(db: PgPool) {
    retention::prune_forever(db, PRUNE_STATEMENT, RETENTION).await;
}
