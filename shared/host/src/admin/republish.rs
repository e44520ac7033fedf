//! Published events are published again: the same events with the same ids, rebuilt from the rows that record
//! them. That repairs a broker that lost its disk, and every other topic that lacks records.
//!
//! Promise: a republished event equals the event that was published, and after it the last record of a key is
//! as new as its row. Reading rows without a lock breaks it: a row that changed before the old event reached
//! the outbox would be followed by its earlier state. Subscribers recognise recent events by their inboxes, and
//! older ones by the keys of their rows.
//!
//! A republish request leaves no state behind. Each response names the cursor with which the next request
//! continues, so an interrupted one is repeated from there or from the beginning.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use chrono::{DateTime, Utc};
use messaging::db;
use messaging::db::operator_acts::{self, OperatorAct};
use messaging::flow::wakeups::Wakeups;
use messaging::outbox::cdc::connector;
use messaging::outbox::{self, Envelope};
use messaging::unit_of_work::write_batch::WriteBatch;
use metrics::counter;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use tokio::time::Instant;
use tracing::warn;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::admin::published_events;
use crate::http::callers::caller::Caller;
use crate::http::extractors::Json;
use crate::http::problem::Problem;
pub use messaging::outbox::republish_source::{
    EventTypes, PublishedEvent, Republish, RepublishSource, traceparent,
};
use messaging::outbox::republish_source::{PAGE_ROWS, Page, Selection};

/// The time after which one request answers with a cursor instead of continuing.
const REQUEST_DURATION_MAX: Duration = Duration::from_secs(8);

/// While this number of events waits for the relay, no more are added: the outbox is made for short queues.
const OUTBOX_ROWS_MAX: i64 = 10_000;
const OUTBOX_POLL_INTERVAL: Duration = Duration::from_millis(100);

struct Republisher {
    db: PgPool,
    wakeups: Arc<Wakeups>,
    sources: Arc<[RepublishSource]>,
}

/// The routes `POST /republish` and `GET /published-events` of the admin port.
pub fn router(
    db: PgPool,
    wakeups: Arc<Wakeups>,
    sources: impl IntoIterator<Item = RepublishSource>,
) -> OpenApiRouter {
    let sources: Arc<[RepublishSource]> = sources.into_iter().collect();
    let published_events = published_events::router(db.clone(), sources.clone());
    let republisher = Arc::new(Republisher { db, wakeups, sources });
    let republish = OpenApiRouter::new().routes(routes!(republish)).with_state(republisher);
    republish.merge(published_events)
}

/// What to republish: everything, unless it names a key or a time.
#[derive(Debug, Default, Deserialize, Serialize, ToSchema)]
#[serde(default, deny_unknown_fields)]
struct RepublishRequest {
    /// Only events with this key. It excludes `after`.
    key: Option<String>,
    /// Only events that were decided at this time or later.
    since: Option<DateTime<Utc>>,
    /// The cursor that an earlier response gave as `next`.
    after: Option<String>,
}

/// What this request republished.
#[derive(Debug, Default, Serialize, ToSchema)]
struct RepublishProgress {
    /// Events written to the outbox.
    republished: usize,
    /// Rows read.
    rows: usize,
    /// Events that wait for the relay, counted up to 10,001.
    outbox: i64,
    /// The cursor with which to continue, as `after`: a table, a slash and a key. Null: everything is republished.
    #[schema(required)]
    next: Option<String>,
}

/// Publishes again what this service has published: the same events with the same ids.
///
/// One request works for some seconds, and its `next` is the `after` of the next request.
#[utoipa::path(post, path = "/republish", responses(
    (status = 200, description = "What this request republished.", body = RepublishProgress),
    (status = 404, description = "Nothing was published under this key."),
))]
async fn republish(
    State(republisher): State<Arc<Republisher>>,
    actor: Caller,
    Json(request): Json<RepublishRequest>,
) -> Result<Json<RepublishProgress>, Problem> {
    let act = Act {
        since: request.since.unwrap_or(DateTime::<Utc>::MIN_UTC),
        request: serde_json::to_string(&request).unwrap_or_default(),
        actor: &actor,
    };
    let progress = match (request.key, request.after) {
        (Some(key), None) => republisher.republish_key(&key, &act).await?,
        (None, after) => {
            let first = || republisher.sources.first().map(RepublishSource::start);
            republisher.republish_all(after.or_else(first), &act).await?
        }
        (Some(_), Some(_)) => {
            return Err(Problem::invalid("after", "a key is republished in one request"));
        }
    };
    Ok(Json(progress))
}

struct Act<'a> {
    since: DateTime<Utc>,
    request: String,
    actor: &'a Caller,
}

impl Republisher {
    async fn republish_key(&self, key: &str, act: &Act<'_>) -> Result<RepublishProgress, Problem> {
        let mut progress = RepublishProgress::default();
        for source in self.sources.iter() {
            let written = self.republish_page(source, Selection::Key(key), act, &mut progress);
            // The events of another table under this key are already written.
            written.await.map_err(|problem| match progress.rows {
                0 => problem,
                _ => Problem::admin_outcome_unknown(problem),
            })?;
        }
        if progress.rows == 0 {
            return Err(Problem::not_found("nothing was published under this key"));
        }
        progress.outbox = self.outbox_depth().await.map_err(Problem::admin_outcome_unknown)?;
        Ok(progress)
    }

    /// Continues until everything is republished or the request's time is up. If it fails after some pages, it
    /// answers with its cursor: at worst, the next request republishes the last page again.
    async fn republish_all(
        &self,
        from: Option<String>,
        act: &Act<'_>,
    ) -> Result<RepublishProgress, Problem> {
        let mut progress = RepublishProgress { next: from, ..RepublishProgress::default() };
        match self.republish_pages(act, &mut progress).await {
            Err(problem) if progress.rows == 0 => Err(problem),
            Err(problem) => {
                warn!("republishing stopped early: {problem:?}");
                Ok(progress)
            }
            Ok(()) => Ok(progress),
        }
    }

    async fn republish_pages(
        &self,
        act: &Act<'_>,
        progress: &mut RepublishProgress,
    ) -> Result<(), Problem> {
        let until = Instant::now() + REQUEST_DURATION_MAX;
        while let Some(cursor) = progress.next.clone() {
            let (index, key) = self.parse_cursor(&cursor)?;
            progress.outbox = self.outbox_depth().await?;
            if Instant::now() > until {
                break;
            }
            let unconfirmed = connector::unconfirmed_bytes(&mut *self.db.acquire().await?).await?;
            if progress.outbox > OUTBOX_ROWS_MAX || unconfirmed > connector::UNCONFIRMED_BYTES_MAX {
                tokio::time::sleep(OUTBOX_POLL_INTERVAL).await;
                continue;
            }
            let source = &self.sources[index];
            let last = self.republish_page(source, Selection::After(key), act, progress).await?;
            progress.next = match last {
                Some(key) => Some(format!("{}/{key}", source.table)),
                None => self.sources.get(index + 1).map(RepublishSource::start),
            };
        }
        Ok(())
    }

    /// Republishes some rows. The first ones of a request record it as an act. Returns the key of the last one if there may be more behind it. The rows stay locked
    /// from the read to the commit: a transaction that changes them waits, and its events follow.
    async fn republish_page(
        &self,
        source: &RepublishSource,
        selection: Selection<'_>,
        act: &Act<'_>,
        progress: &mut RepublishProgress,
    ) -> Result<Option<String>, Problem> {
        let mut tx = db::begin(&self.db).await?;
        let Page { rows, last, events } = (source.read)(&mut tx, selection).await?;
        let published = events.into_iter().filter(|event| event.occurred_at >= act.since);
        let envelopes: Vec<Envelope> = published
            .map(|PublishedEvent { event_id, occurred_at, event }| {
                let traceparent = Some(traceparent(&event.key));
                let (tracestate, causation_id) = (None, None);
                Envelope { event, event_id, traceparent, tracestate, causation_id, occurred_at }
            })
            .collect();
        if progress.republished == 0 && !envelopes.is_empty() {
            let (request, actor) = (Some(&*act.request), act.actor.subject());
            operator_acts::insert(&mut tx, OperatorAct::Republish, request, actor).await?;
        }
        let mut writes = WriteBatch::new(&mut tx);
        outbox::insert(&mut writes, &envelopes);
        writes.execute().await?;
        tx.commit().await.map_err(Problem::admin_outcome_unknown)?;
        self.wakeups.relay.notify_one();
        counter!("events_republished_total").increment(envelopes.len() as u64);
        progress.republished += envelopes.len();
        progress.rows += rows;
        Ok(last.filter(|_| rows == PAGE_ROWS))
    }

    async fn outbox_depth(&self) -> sqlx::Result<i64> {
        sqlx::query_scalar("select count(*) from (select from chassis.outbox limit $1) as waiting")
            .bind(OUTBOX_ROWS_MAX + 1)
            .fetch_one(&self.db)
            .await
    }

    /// The source that a cursor names, and the key behind which it continues.
    fn parse_cursor<'a>(&self, cursor: &'a str) -> Result<(usize, &'a str), Problem> {
        let named = cursor.split_once('/').and_then(|(table, key)| {
            Some((self.sources.iter().position(|source| source.table == table)?, key))
        });
        named.ok_or_else(|| Problem::invalid("after", "is no value of `next` from a response"))
    }
}
