//! The inbox: which events were handled.
//!
//! Promise: an event has its effect once, however often it arrives. It is broken by admitting in
//! another transaction than the effect's, or by pruning sooner than Kafka could redeliver, as by a clock
//! that jumped.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::clock::newest_tick;
use crate::db;
use crate::writes::Writes;

/// Kept longer than any topic (14 days) and any committed offset (21 days) can bring an event back. An
/// announcement, or a dead letter that is replayed, can at any age: then it is the keys of the rows that
/// keep its effect from coming twice.
pub const KEPT: Duration = Duration::from_secs(30 * 24 * 3600);

/// Enters events into the inbox; answers those that were not there yet, and now, by the database's
/// clock. The others were handled.
///
/// Where another transaction is just entering one of them, this waits for its end. Ids are sorted,
/// so that two batches wait in one direction only. `attempts` is the number of this attempt, from
/// 1; it is stored with each event.
pub async fn admit(
    tx: &mut PgConnection,
    events: &[(Uuid, &'static str)],
    attempts: i32,
) -> sqlx::Result<(HashSet<Uuid>, DateTime<Utc>)> {
    let events = sorted(events);
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

/// Enters events with their effect, a round trip less than [`admit`]. If one of them is there already,
/// the whole statement fails, as its key is unique.
pub(crate) fn enter(writes: &mut Writes<'_>, events: &[(Uuid, &'static str)], attempts: i32) {
    if events.is_empty() {
        return;
    }
    let events = sorted(events);
    writes
        .add(concat!(
            "insert into inbox (event_id, topic, attempts, tick)
         select unnest($1::uuid[]), unnest($2::text[]), $3, ",
            newest_tick!()
        ))
        .bind(events.iter().map(|(event_id, _)| *event_id).collect::<Vec<_>>())
        .bind(events.iter().map(|(_, topic)| *topic).collect::<Vec<_>>())
        .bind(attempts);
}

/// The topics that events came in which are there.
pub(crate) async fn topics(
    tx: &mut PgConnection,
    event_ids: &[Uuid],
) -> sqlx::Result<HashMap<Uuid, String>> {
    let topics = sqlx::query_as("select event_id, topic from inbox where event_id = any($1)");
    let topics: Vec<(Uuid, String)> = topics.bind(event_ids).fetch_all(tx).await?;
    Ok(topics.into_iter().collect())
}

/// Sorted, and each once, the first of them: the batch itself may hold a repeat.
fn sorted(events: &[(Uuid, &'static str)]) -> Vec<(Uuid, &'static str)> {
    let mut events = events.to_vec();
    events.sort_by_key(|(event_id, _)| *event_id);
    events.dedup_by_key(|(event_id, _)| *event_id);
    events
}

/// What was discarded stays: an announcement may bring an event back at any age, and what an operator
/// gave up, and wrote off, is never to have its effect.
pub(crate) const PRUNE: &str = "
    delete from inbox where event_id in (
        select event_id from inbox
        where tick < $1
          and not exists (select from dead_letters as letter
                          where letter.event_id = inbox.event_id and letter.state = 'discarded')
        order by tick limit $2)";

/// Deletes what is older than [`KEPT`], for as long as the process runs.
pub(crate) async fn prune(db: PgPool) {
    db::prune(db, PRUNE, KEPT).await;
}
