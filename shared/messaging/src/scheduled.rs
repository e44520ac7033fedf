//! The schedule: what is due later, a row for each timer.
//!
//! Promise: a timer is set, moved or cancelled with the decision that wants it, and fires once in effect. A row that is
//! written or deleted in another transaction than the decision breaks it, and so does a handler that is called for a row
//! which was cancelled or moved meanwhile.

use std::collections::{BTreeMap, HashSet};

use chrono::{DateTime, Utc};
use opentelemetry::Context;
use rdkafka::Timestamp;
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};
use serde_json::Value;
use sqlx::{PgConnection, PgPool};
use uuid::Uuid;

use crate::db;
use crate::db::clock::newest_tick;
use crate::event::timer::{Setting, TimerChange, TimerKey};
use crate::event::{HandlerContext, SetTimer, Timer, response_id};
use crate::telemetry;
use crate::unit_of_work::write_batch::{Statement, WriteBatch};

/// Timers that fire in one transaction, at most.
pub const TIMER_BATCH_MAX: usize = 256;

/// Rows that one query reads or writes, at most.
const ROWS_MAX: i64 = 1_000;

/// The beginning and the end of the statements that set timers.
macro_rules! insert {
    () => {
        "insert into chassis.scheduled (source, key, event_id, body, due_at, causation_id, traceparent,
                                        tracestate, set_at, tick) "
    };
}
macro_rules! or_move {
    () => {
        " on conflict (source, key) do update set
             event_id = excluded.event_id, body = excluded.body, due_at = excluded.due_at, attempts = 0,
             set_at = excluded.set_at, tick = excluded.tick, causation_id = excluded.causation_id,
             traceparent = excluded.traceparent, tracestate = excluded.tracestate"
    };
}

/// The row of a timer that is set.
#[derive(Debug)]
pub(crate) struct NewRow {
    setting: Setting,
    event_id: Uuid,
    causation_id: Option<Uuid>,
    traceparent: String,
    tracestate: Option<String>,
}

/// What happens to the row of a timer.
#[derive(Debug)]
pub(crate) enum Change {
    /// It is inserted, or takes the place of the row that is there.
    Set(NewRow),
    /// It is deleted.
    Cancelled,
    /// It is deleted if it still has this id.
    Fired(Uuid),
}

/// The changes of one batch: the last one of each timer.
#[derive(Default)]
pub(crate) struct Changes(BTreeMap<TimerKey, Change>);

impl Changes {
    /// Notes a timer whose handler is to decide.
    pub fn fire(&mut self, timer: &TimerKey, event_id: Uuid) {
        self.0.insert(timer.clone(), Change::Fired(event_id));
    }

    /// Whether a decision of this batch has set or cancelled the timer: then the row that was read does not fire.
    pub fn has_decided(&self, timer: &TimerKey) -> bool {
        matches!(self.0.get(timer), Some(Change::Set(_) | Change::Cancelled))
    }

    /// Adds what a decision wants. The id of a timer follows from its cause, its name and its key.
    pub fn decide(
        &mut self,
        wanted: Vec<TimerChange>,
        HandlerContext { event_id, causation_id, .. }: HandlerContext,
        trace: &Context,
    ) {
        for TimerChange { timer, set } in wanted {
            let change = match set {
                None => Change::Cancelled,
                Some(setting) => {
                    let (traceparent, tracestate) = telemetry::trace_headers(trace);
                    let event_id =
                        response_id(&format!("{}/{}", timer.source, timer.key), event_id);
                    let row = NewRow { setting, event_id, causation_id, traceparent, tracestate };
                    Change::Set(row)
                }
            };
            self.0.insert(timer, change);
        }
    }

    /// Adds the later changes of the same batch.
    pub fn extend(&mut self, later: Changes) {
        self.0.extend(later.0);
    }

    /// Writes the changes: one statement for those that are gone and one for those that are set, sorted, so that two
    /// batches wait for each other in one direction.
    pub fn write(&self, writes: &mut WriteBatch<'_>) {
        let gone = self.0.iter().filter_map(|(timer, change)| match change {
            Change::Set(_) => None,
            Change::Cancelled => Some((timer, None)),
            Change::Fired(event_id) => Some((timer, Some(*event_id))),
        });
        let gone = Vec::from_iter(gone);
        if !gone.is_empty() {
            writes
                .statement(
                    "delete from chassis.scheduled as pending
                     using (select unnest($1::text[]) as source, unnest($2::text[]) as key,
                                   unnest($3::uuid[]) as event_id) as gone
                     where pending.source = gone.source and pending.key = gone.key
                       and pending.event_id = coalesce(gone.event_id, pending.event_id)",
                )
                .bind(gone.iter().map(|(timer, _)| timer.source).collect::<Vec<_>>())
                .bind(gone.iter().map(|(timer, _)| timer.key.as_str()).collect::<Vec<_>>())
                .bind(gone.iter().map(|(_, event_id)| *event_id).collect::<Vec<_>>());
        }
        let set = Vec::from_iter(self.set());
        if !set.is_empty() {
            let statement = writes.statement(concat!(
                insert!(),
                "select unnest($1::text[]), unnest($2::text[]), unnest($3::uuid[]), unnest($4::jsonb[]),
                        unnest($5::timestamptz[]), unnest($6::uuid[]), unnest($7::text[]),
                        unnest($8::text[]), now(), ",
                newest_tick!(),
                or_move!()
            ));
            bind(statement, &set);
        }
    }

    fn set(&self) -> impl Iterator<Item = (&TimerKey, &NewRow)> {
        self.0.iter().filter_map(|(timer, change)| match change {
            Change::Set(row) => Some((timer, row)),
            Change::Cancelled | Change::Fired(_) => None,
        })
    }
}

fn bind<'a, 'tx>(
    statement: Statement<'a, 'tx>,
    set: &[(&TimerKey, &NewRow)],
) -> Statement<'a, 'tx> {
    let rows = || set.iter().map(|(_, row)| row);
    statement
        .bind(set.iter().map(|(timer, _)| timer.source).collect::<Vec<_>>())
        .bind(set.iter().map(|(timer, _)| timer.key.as_str()).collect::<Vec<_>>())
        .bind(rows().map(|row| row.event_id).collect::<Vec<_>>())
        .bind(rows().map(|row| &row.setting.body).collect::<Vec<_>>())
        .bind(rows().map(|row| row.setting.due_at).collect::<Vec<_>>())
        .bind(rows().map(|row| row.causation_id).collect::<Vec<_>>())
        .bind(rows().map(|row| row.traceparent.as_str()).collect::<Vec<_>>())
        .bind(rows().map(|row| row.tracestate.as_deref()).collect::<Vec<_>>())
}

/// A timer that is due.
#[doc(hidden)]
#[derive(Debug, sqlx::FromRow)]
pub struct DueRow {
    pub source: String,
    pub key: String,
    pub position: i64,
    pub event_id: Uuid,
    pub body: Value,
    pub due_at: DateTime<Utc>,
    pub attempts: i32,
    /// The time since it was set, by the database's clock.
    pub age_seconds: f64,
    pub causation_id: Option<Uuid>,
    pub traceparent: String,
    pub tracestate: Option<String>,
}

impl DueRow {
    /// What nothing caused and is due now, for tests.
    #[doc(hidden)]
    pub fn now(source: &str, key: String, event_id: Uuid, body: Value) -> DueRow {
        DueRow {
            source: source.into(),
            key,
            position: 1,
            event_id,
            body,
            due_at: Utc::now(),
            attempts: 0,
            age_seconds: 0.0,
            causation_id: None,
            traceparent: telemetry::trace_headers(&Context::new()).0,
            tracestate: None,
        }
    }

    /// The timer as a record, so that it can become a dead letter. Its place is that of its row.
    pub fn to_message(&self, body: Vec<u8>) -> OwnedMessage {
        let (id, cause) = (self.event_id.to_string(), self.causation_id.map(|id| id.to_string()));
        let headers = [
            ("ce_id", Some(id.as_str())),
            ("traceparent", Some(self.traceparent.as_str())),
            ("tracestate", self.tracestate.as_deref()),
            ("ce_causationid", cause.as_deref()),
        ];
        let present = headers.into_iter().filter(|(_, value)| value.is_some());
        let headers = present.fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value })
        });
        OwnedMessage::new(
            Some(body),
            Some(self.key.clone().into_bytes()),
            self.source.clone(),
            Timestamp::CreateTime(self.due_at.timestamp_millis()),
            0,
            self.position,
            Some(headers),
        )
    }
}

/// The timers of one name that may fire.
#[derive(Clone, Debug)]
pub(crate) struct Ready {
    pub source: &'static str,
    /// Those that are due at this time or earlier, by the database's clock.
    pub now: DateTime<Utc>,
    /// The time that is trusted, which may lie behind. Those that were set before it are due by it as well. Those that
    /// were set behind it were set by the clock of now, and as much time was measured as they were set for.
    pub trusted: DateTime<Utc>,
    /// Whether so much time must have been measured for all of them.
    pub is_measured: bool,
}

/// Reads timers that may fire, `limit` of each name at most, the earliest first. `measured_ms` is the time that was
/// measured since tick 0, in milliseconds.
pub(crate) async fn due(
    db: &mut PgConnection,
    ready: &[Ready],
    measured_ms: i64,
    limit: i64,
) -> sqlx::Result<Vec<DueRow>> {
    sqlx::query_as(
        "select pending.source, pending.key, position, event_id, body, due_at, attempts,
                causation_id, traceparent, tracestate,
                extract(epoch from clock_timestamp() - set_at)::float8 as age_seconds
         from unnest($1::text[], $2::timestamptz[], $3::timestamptz[], $4::bool[])
                as ready (source, now, trusted, is_measured)
         cross join lateral (
             select source, key, position, event_id, body, due_at, attempts, causation_id,
                    traceparent, tracestate, set_at
             from chassis.scheduled
             where scheduled.source = ready.source and due_at <= ready.now
               and (not ready.is_measured and due_at <= ready.trusted
                    or (due_at <= ready.trusted or set_at > ready.trusted)
                       -- A tick that was deleted is older than any time that is measured.
                       and $5 >= coalesce(
                           (select elapsed_ms from chassis.clock_ticks where tick = scheduled.tick)
                           + 1000 * extract(epoch from due_at - set_at), $5))
             order by due_at limit $6) as pending",
    )
    .bind(ready.iter().map(|it| it.source).collect::<Vec<_>>())
    .bind(ready.iter().map(|it| it.now).collect::<Vec<_>>())
    .bind(ready.iter().map(|it| it.trusted).collect::<Vec<_>>())
    .bind(ready.iter().map(|it| it.is_measured).collect::<Vec<_>>())
    .bind(measured_ms)
    .bind(limit)
    .fetch_all(db)
    .await
}

/// Locks the rows of these timers, sorted, and returns those that are there with these ids still.
pub(crate) async fn lock(
    tx: &mut PgConnection,
    timers: &[(&TimerKey, Uuid)],
) -> sqlx::Result<HashSet<Uuid>> {
    if timers.is_empty() {
        return Ok(HashSet::new());
    }
    let there: Vec<Uuid> = sqlx::query_scalar(
        "select pending.event_id from chassis.scheduled as pending
         join (select unnest($1::text[]) as source, unnest($2::text[]) as key,
                      unnest($3::uuid[]) as event_id) as fired
           on pending.source = fired.source and pending.key = fired.key
          and pending.event_id = fired.event_id
         order by pending.source, pending.key for update of pending",
    )
    .bind(timers.iter().map(|(timer, _)| timer.source).collect::<Vec<_>>())
    .bind(timers.iter().map(|(timer, _)| timer.key.as_str()).collect::<Vec<_>>())
    .bind(timers.iter().map(|(_, event_id)| *event_id).collect::<Vec<_>>())
    .fetch_all(tx)
    .await?;
    Ok(there.into_iter().collect())
}

/// Defers a timer by this number of seconds, unless it was cancelled or moved meanwhile.
pub(crate) async fn defer(
    db: &PgPool,
    timer: &TimerKey,
    event_id: Uuid,
    seconds: f64,
) -> sqlx::Result<()> {
    let defer = "update chassis.scheduled
                 set due_at = clock_timestamp() + make_interval(secs => $4), attempts = attempts + 1
                 where source = $1 and key = $2 and event_id = $3";
    let defer = sqlx::query(defer).bind(timer.source).bind(&timer.key).bind(event_id);
    defer.bind(seconds).execute(db).await.map(drop)
}

/// The names of the timers that are pending, each with the time for which the earliest has been due by the database's
/// clock; negative if none is due.
pub(crate) async fn oldest(db: &mut PgConnection) -> sqlx::Result<Vec<(String, f64)>> {
    // It steps from name to name in the index, however many rows each has.
    sqlx::query_as(
        "with recursive names (source) as (
             select min(source) from chassis.scheduled
             union all
             select (select min(source) from chassis.scheduled where source > names.source)
             from names where names.source is not null)
         select source, extract(epoch from clock_timestamp()
                    - (select min(due_at) from chassis.scheduled where scheduled.source = names.source))::float8
         from names where source is not null",
    )
    .fetch_all(db)
    .await
}

/// Sets timers as a decision does, for benchmarks.
///
/// # Errors
/// Those of the database.
#[doc(hidden)]
pub async fn set(tx: &mut PgConnection, timers: Vec<SetTimer>) -> sqlx::Result<()> {
    let mut changes = Changes::default();
    let context = HandlerContext { now: Utc::now(), event_id: Uuid::now_v7(), causation_id: None };
    changes.decide(timers.into_iter().map(|SetTimer(it)| it).collect(), context, &Context::new());
    let mut writes = WriteBatch::new(tx);
    changes.write(&mut writes);
    writes.execute().await
}

/// Sets timers outside of a decision, for a setting that changes when something is due: each as if it had been set at the
/// time beside it, by the database's clock. One that is pending is moved, unless it is due at the same time.
///
/// # Errors
/// Those of the database. Nothing is set then.
pub async fn set_since(
    db: &PgPool,
    timers: impl IntoIterator<Item = (SetTimer, DateTime<Utc>)>,
) -> sqlx::Result<()> {
    let (mut changes, mut since) = (Changes::default(), BTreeMap::new());
    for (SetTimer(change), set_at) in timers {
        let context = HandlerContext { now: set_at, event_id: Uuid::now_v7(), causation_id: None };
        since.insert(change.timer.clone(), set_at);
        changes.decide(vec![change], context, &Context::new());
    }
    let set = Vec::from_iter(changes.set());
    let since = Vec::from_iter(set.iter().map(|(timer, _)| since[timer]));
    let mut tx = db::begin(db).await?;
    let mut writes = WriteBatch::new(&mut tx);
    let statement = writes.statement(concat!(
        insert!(),
        "select source, key, event_id, body, due_at, causation_id, traceparent, tracestate, set_at,
                (select coalesce(max(tick), 0) from chassis.clock_ticks where recorded_at <= set_at)
         from unnest($1::text[], $2::text[], $3::uuid[], $4::jsonb[], $5::timestamptz[], $6::uuid[],
                     $7::text[], $8::text[], $9::timestamptz[])
              as timer (source, key, event_id, body, due_at, causation_id, traceparent, tracestate, set_at)",
        or_move!(),
        " where scheduled.due_at <> excluded.due_at"
    ));
    bind(statement, &set).bind(since);
    writes.execute().await?;
    tx.commit().await
}

/// Cancels every timer of a type, for a setting without which nothing is due. Returns their number.
///
/// # Errors
/// Those of the database. Some may be cancelled then.
pub async fn cancel_all<T: Timer>(db: &PgPool) -> sqlx::Result<u64> {
    let mut cancelled = 0;
    loop {
        let some = "delete from chassis.scheduled where source = $1 and key in
                    (select key from chassis.scheduled where source = $1 limit $2)";
        let deleted = sqlx::query(some).bind(T::NAME).bind(ROWS_MAX).execute(db).await?;
        cancelled += deleted.rows_affected();
        if deleted.rows_affected() == 0 {
            return Ok(cancelled);
        }
    }
}
