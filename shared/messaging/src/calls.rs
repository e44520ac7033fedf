//! The calls that are pending: a row for each, from its decision until its outcome is known.
//!
//! Promise: a call is made if and only if its decision was committed, and every try has the same idempotency key. What is
//! heard of it is scheduled in the transaction that changes its row, so that its handler hears it once in effect. A try
//! whose beginning was not committed before its request is sent breaks the promise: after a crash it would pass for none.

use chrono::{DateTime, Utc};
use opentelemetry::Context;
use serde::Serialize;
use serde_json::{Value, json};
use sqlx::types::Json;
use sqlx::{AssertSqlSafe, PgConnection, PgPool};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::crash_point;
use crate::db::clock::newest_tick;
use crate::db::operator_acts::{self, OperatorAct, OperatorActError};
use crate::event::call::{CallChange, NewCall, PERSON, Request, target_of};
use crate::event::{HandlerContext, response_id};
use crate::telemetry;
use crate::unit_of_work::write_batch::WriteBatch;

/// The row of a call that is made.
#[derive(Debug)]
struct NewRow {
    call_id: Uuid,
    new: NewCall,
    causation_id: Option<Uuid>,
    traceparent: String,
    tracestate: Option<String>,
}

/// What the decisions of one batch want of calls.
#[derive(Default)]
pub(crate) struct Changes {
    made: Vec<NewRow>,
    /// Names and keys.
    settled: Vec<(&'static str, String)>,
}

impl Changes {
    /// Adds what a decision wants. The id of a call follows from its cause, its name and its key.
    pub fn decide(&mut self, wanted: Vec<CallChange>, context: HandlerContext, trace: &Context) {
        let HandlerContext { event_id, causation_id, .. } = context;
        for change in wanted {
            match change {
                CallChange::Make(new) => {
                    let (traceparent, tracestate) = telemetry::trace_headers(trace);
                    let call_id = response_id(&format!("{}/{}", new.name, new.key), event_id);
                    self.made.push(NewRow { call_id, new, causation_id, traceparent, tracestate });
                }
                CallChange::Settle { name, key } => self.settle(name, key),
            }
        }
    }

    /// Adds the later changes of the same batch.
    pub fn extend(&mut self, later: Changes) {
        for (name, key) in later.settled {
            self.settle(name, key);
        }
        self.made.extend(later.made);
    }

    fn settle(&mut self, name: &'static str, key: String) {
        // One statement writes the batch, and it cannot delete a row that it inserts.
        self.made.retain(|row| row.new.name != name || row.new.key != key);
        self.settled.push((name, key));
    }

    /// Writes the changes.
    pub fn write(&self, writes: &mut WriteBatch<'_>) {
        if !self.settled.is_empty() {
            writes
                .statement(
                    "delete from chassis.calls as pending
                     using (select unnest($1::text[]) as name, unnest($2::text[]) as key) as settled
                     where pending.name = settled.name and pending.key = settled.key",
                )
                .bind(self.settled.iter().map(|(name, _)| *name).collect::<Vec<_>>())
                .bind(self.settled.iter().map(|(_, key)| key.as_str()).collect::<Vec<_>>());
        }
        if self.made.is_empty() {
            return;
        }
        let rows = || self.made.iter();
        writes
            .statement(
                "insert into chassis.calls
                     (call_id, name, target, key, in_order, call, request, causation_id, traceparent, tracestate,
                      next_try_at)
                 select call_id, name, target, key, in_order, call, request, causation_id, traceparent, tracestate,
                        case when target <> $11 then clock_timestamp() end
                 from unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::bool[], $6::jsonb[], $7::jsonb[],
                             $8::uuid[], $9::text[], $10::text[])
                     as made (call_id, name, target, key, in_order, call, request, causation_id, traceparent,
                              tracestate)",
            )
            .bind(rows().map(|row| row.call_id).collect::<Vec<_>>())
            .bind(rows().map(|row| row.new.name).collect::<Vec<_>>())
            .bind(rows().map(|row| target_of(row.new.name)).collect::<Vec<_>>())
            .bind(rows().map(|row| row.new.key.as_str()).collect::<Vec<_>>())
            .bind(rows().map(|row| row.new.in_order).collect::<Vec<_>>())
            .bind(rows().map(|row| &row.new.call).collect::<Vec<_>>())
            .bind(rows().map(|row| &row.new.request).collect::<Vec<_>>())
            .bind(rows().map(|row| row.causation_id).collect::<Vec<_>>())
            .bind(rows().map(|row| row.traceparent.as_str()).collect::<Vec<_>>())
            .bind(rows().map(|row| row.tracestate.as_deref()).collect::<Vec<_>>())
            .bind(PERSON);
    }
}

/// What was asked of a system or of a person, and in which trace.
#[derive(Debug, sqlx::FromRow)]
pub struct Asked {
    pub call_id: Uuid,
    pub name: String,
    pub key: String,
    pub call: Value,
    pub causation_id: Option<Uuid>,
    pub traceparent: String,
    pub tracestate: Option<String>,
}

/// A call whose try begins.
#[derive(Debug, sqlx::FromRow)]
pub struct PendingCall {
    #[sqlx(flatten)]
    pub asked: Asked,
    pub request: Json<Request>,
    /// With this one.
    pub tries: i32,
    /// The time since its decision, by the database's clock.
    pub age_seconds: f64,
    /// Whether an earlier try may have been done.
    pub is_uncertain: bool,
    /// Whether its handler has heard, or will hear, that its outcome is unknown.
    pub was_unknown: bool,
}

/// Begins a try of the calls to a target that are due, `limit` at most, and commits it. A try that has no result, since
/// its process was killed, counts as one that may have been done; it is tried again once its next time has come, which
/// is `lost_after` seconds from now.
pub(crate) async fn begin_tries(
    db: &mut PgConnection,
    target: &str,
    limit: i64,
    lost_after: f64,
) -> sqlx::Result<Vec<PendingCall>> {
    sqlx::query_as(
        "update chassis.calls as pending
         set tries = tries + 1, is_uncertain = is_uncertain or trying_since is not null and request ->> 'method' <> 'GET',
             trying_since = clock_timestamp(), next_try_at = clock_timestamp() + make_interval(secs => $3)
         where call_id in (
             select call_id from chassis.calls as due
             where target = $1 and next_try_at <= clock_timestamp()
               and not (in_order and exists (
                   select from chassis.calls as earlier
                   where earlier.name = due.name and earlier.key = due.key
                     and (earlier.created_at, earlier.call_id) < (due.created_at, due.call_id)))
             order by next_try_at limit $2 for update skip locked)
         returning call_id, name, key, call, request, tries, is_uncertain, causation_id, traceparent, tracestate,
                   unknown_since is not null as was_unknown,
                   extract(epoch from clock_timestamp() - created_at)::float8 as age_seconds",
    )
    .bind(target)
    .bind(limit)
    .bind(lost_after)
    .fetch_all(db)
    .await
}

/// What follows a try.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum AfterTry {
    /// The outcome is known: its handler hears this.
    Known(Value),
    /// It is tried again after so many seconds.
    Again { seconds: f64, is_uncertain: bool, error: String },
    /// It is not tried any more: its handler hears that the outcome is unknown.
    Unknown { error: String },
}

/// Commits what follows a try, unless the call was settled meanwhile. Returns whether it was pending still.
pub(crate) async fn end_try(
    db: &PgPool,
    call: &PendingCall,
    after: &AfterTry,
) -> sqlx::Result<bool> {
    let mut tx = db.begin().await?;
    let changed = match after {
        AfterTry::Known(_) => {
            sqlx::query("delete from chassis.calls where call_id = $1").bind(call.asked.call_id)
        }
        AfterTry::Again { seconds, is_uncertain, error } => sqlx::query(
            "update chassis.calls
             set trying_since = null, next_try_at = clock_timestamp() + make_interval(secs => $2),
                 is_uncertain = is_uncertain or $3, last_error = $4
             where call_id = $1",
        )
        .bind(call.asked.call_id)
        .bind(seconds)
        .bind(is_uncertain)
        .bind(error),
        AfterTry::Unknown { error } => sqlx::query(
            "update chassis.calls
             set trying_since = null, next_try_at = null, is_uncertain = true, last_error = $2,
                 unknown_since = coalesce(unknown_since, clock_timestamp())
             where call_id = $1",
        )
        .bind(call.asked.call_id)
        .bind(error),
    };
    let is_pending = changed.execute(&mut *tx).await?.rows_affected() > 0;
    let heard = match after {
        AfterTry::Known(result) => Some(result.clone()),
        // Once is enough.
        AfterTry::Unknown { .. } if call.was_unknown => None,
        AfterTry::Unknown { error } => {
            Some(json!({ "unknown": { "tries": call.tries, "detail": error } }))
        }
        AfterTry::Again { .. } => None,
    };
    if let Some(result) = heard.filter(|_| is_pending) {
        schedule_answer(&mut tx, &call.asked, kind_of(&result), &result).await?;
    }
    crash_point!("calls.prepared");
    tx.commit().await?;
    crash_point!("calls.committed");
    Ok(is_pending)
}

/// The kind of a result: its one field.
fn kind_of(result: &Value) -> &str {
    let kind = result.as_object().and_then(|result| result.keys().next());
    kind.map_or("", String::as_str)
}

/// Schedules what the handler of a call or a task hears. What it was to hear before, and has not, is replaced: *done*
/// after *unknown*.
pub(crate) async fn schedule_answer(
    tx: &mut PgConnection,
    call: &Asked,
    kind: &str,
    result: &Value,
) -> sqlx::Result<()> {
    sqlx::query(concat!(
        "insert into chassis.scheduled
             (source, key, event_id, body, due_at, causation_id, traceparent, tracestate, tick)
         select $1, $2, $3, $4, clock_timestamp(), $5, $6, $7, ",
        newest_tick!(),
        " on conflict (source, key) do update set
             event_id = excluded.event_id, body = excluded.body, due_at = excluded.due_at, attempts = 0"
    ))
    .bind(&call.name)
    .bind(call.call_id.to_string())
    .bind(response_id(kind, call.call_id))
    .bind(json!({ "call": call.call, "result": result }))
    .bind(call.causation_id)
    .bind(&call.traceparent)
    .bind(&call.tracestate)
    .execute(tx)
    .await
    .map(drop)
}

/// For how long the oldest call to each target has been pending, in seconds.
pub(crate) async fn oldest(db: &mut PgConnection) -> sqlx::Result<Vec<(String, f64)>> {
    sqlx::query_as(
        "select target, extract(epoch from clock_timestamp() - min(created_at))::float8
         from chassis.calls where target <> $1 group by target",
    )
    .bind(PERSON)
    .fetch_all(db)
    .await
}

/// A pending call, as operators see it.
#[derive(Debug, Serialize, sqlx::FromRow, ToSchema)]
pub struct CallSummary {
    /// Its idempotency key.
    pub call_id: Uuid,
    name: String,
    key: String,
    created_at: DateTime<Utc>,
    /// Null if it is not tried any more.
    #[schema(required)]
    next_try_at: Option<DateTime<Utc>>,
    tries: i32,
    /// Whether a try may have been done without an answer.
    is_uncertain: bool,
    /// Since when its outcome has been unknown, if it is.
    #[schema(required)]
    unknown_since: Option<DateTime<Utc>>,
    /// What the last try met.
    #[schema(required)]
    last_error: Option<String>,
}

const SUMMARY: &str =
    "call_id, name, key, created_at, next_try_at, tries, is_uncertain, unknown_since, last_error";

/// The oldest pending calls.
pub async fn list(db: &PgPool, limit: i64) -> sqlx::Result<Vec<CallSummary>> {
    let calls = format!(
        "select {SUMMARY} from chassis.calls where target <> $2 order by created_at, call_id limit $1"
    );
    sqlx::query_as(AssertSqlSafe(calls)).bind(limit).bind(PERSON).fetch_all(db).await
}

/// Has a call tried at once. `None` if it is not pending.
///
/// # Errors
/// Those of the database.
pub async fn try_now(
    db: &PgPool,
    call_id: Uuid,
    actor: Option<&str>,
) -> Result<Option<CallSummary>, OperatorActError> {
    let mut tx = db.begin().await?;
    let update = format!(
        "update chassis.calls set next_try_at = clock_timestamp() where call_id = $1 and target <> '{PERSON}' returning {SUMMARY}"
    );
    let call = sqlx::query_as(AssertSqlSafe(update)).bind(call_id).fetch_optional(&mut *tx).await?;
    let request = call_id.to_string();
    operator_acts::insert(&mut tx, OperatorAct::TryCall, Some(&request), actor).await?;
    tx.commit().await.map_err(OperatorActError::OutcomeUnknown)?;
    Ok(call)
}

/// What a person knows of a call.
#[derive(Clone, Debug, PartialEq)]
pub enum SettledAs {
    /// It was done, and this would have been the answer.
    Done(Value),
    /// It was not done.
    NotDone,
}

/// Settles a call: its handler hears what a person knows of it. `None` if it is not pending.
///
/// # Errors
/// Those of the database.
pub async fn settle(
    db: &PgPool,
    call_id: Uuid,
    settled_as: SettledAs,
    reason: &str,
    actor: Option<&str>,
) -> Result<Option<CallSummary>, OperatorActError> {
    let mut tx = db.begin().await?;
    let pending = "select call_id, name, key, call, request, tries, is_uncertain, causation_id, traceparent,
                          tracestate, unknown_since is not null as was_unknown, 0::float8 as age_seconds
                   from chassis.calls where call_id = $1 and target <> $2 for update";
    let pending: Option<PendingCall> =
        sqlx::query_as(pending).bind(call_id).bind(PERSON).fetch_optional(&mut *tx).await?;
    let Some(call) = pending else { return Ok(None) };
    let delete = format!("delete from chassis.calls where call_id = $1 returning {SUMMARY}");
    let summary = sqlx::query_as(AssertSqlSafe(delete)).bind(call_id).fetch_one(&mut *tx).await?;
    let result = match settled_as {
        SettledAs::Done(answer) if call.was_unknown => json!({ "done_late": answer }),
        SettledAs::Done(answer) => json!({ "done": answer }),
        SettledAs::NotDone => json!({ "refused": { "status": 0, "detail": reason } }),
    };
    schedule_answer(&mut tx, &call.asked, kind_of(&result), &result).await?;
    let request = format!("{call_id}: {reason}");
    operator_acts::insert(&mut tx, OperatorAct::SettleCall, Some(&request), actor).await?;
    tx.commit().await.map_err(OperatorActError::OutcomeUnknown)?;
    Ok(Some(summary))
}
