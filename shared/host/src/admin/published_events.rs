//! Published events on the admin port: the events that the rows of this service record for a key, and whether the
//! outbox still has them.
//!
//! The outbox has no index for this question, which is rare: an index would cost every event. So the outbox is read
//! from its oldest row on, up to a bound, and beyond the bound the answer is unknown.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use chrono::{DateTime, Utc};
use messaging::db;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::http::extractors::{Json, Query};
use crate::http::problem::Problem;
use messaging::outbox::republish_source::{PublishedEvent, RepublishSource, Selection};

/// Rows of the outbox that are searched, at most, and for how long.
const OUTBOX_ROWS_MAX: i64 = 100_000;
const OUTBOX_TIMEOUT: Duration = Duration::from_secs(1);

pub(super) fn router(db: PgPool, sources: Arc<[RepublishSource]>) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(list_published_events)).with_state((db, sources))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct KeyQuery {
    /// The key of the events, such as an order's id.
    key: String,
}

#[derive(Serialize, ToSchema)]
struct PublishedEvents {
    events: Vec<ListedEvent>,
}

/// An event that this service published.
#[derive(Serialize, ToSchema)]
struct ListedEvent {
    event_id: Uuid,
    topic: &'static str,
    occurred_at: DateTime<Utc>,
    /// Whether it waits for the broker. Null if too many rows wait to tell.
    #[schema(required)]
    in_outbox: Option<bool>,
}

/// Lists the events that this service's rows record for a key, the oldest first.
#[utoipa::path(get, path = "/published-events", params(KeyQuery), responses(
    (status = 200, description = "The events; none if this service has published none.", body = PublishedEvents),
))]
async fn list_published_events(
    State((db, sources)): State<(PgPool, Arc<[RepublishSource]>)>,
    Query(KeyQuery { key }): Query<KeyQuery>,
) -> Result<Json<PublishedEvents>, Problem> {
    let mut published = Vec::new();
    let mut connection = db.acquire().await?;
    for source in sources.iter() {
        // A key has one row in a table, and a row has a few events.
        published.extend((source.read)(&mut connection, Selection::Current(&key)).await?.events);
    }
    drop(connection);
    published.sort_by_key(|event| event.occurred_at);
    // The outbox is read after the rows: an event that was decided in between is not missing from it.
    let waiting = waiting_events(&db, &published).await;
    let events = published.into_iter().map(|PublishedEvent { event_id, occurred_at, event }| {
        let in_outbox = match &waiting {
            Some((found, _)) if found.contains(&event_id) => Some(true),
            Some((_, is_complete)) if *is_complete => Some(false),
            _ => None,
        };
        ListedEvent { event_id, topic: event.topic.name, occurred_at, in_outbox }
    });
    Ok(Json(PublishedEvents { events: events.collect() }))
}

/// The ids that the searched part of the outbox has, and whether that part is the whole outbox. `None` if the search
/// took too long, as under a snapshot that keeps all deleted rows.
async fn waiting_events(
    db: &PgPool,
    published: &[PublishedEvent],
) -> Option<(HashSet<Uuid>, bool)> {
    if published.is_empty() {
        return Some((HashSet::new(), true));
    }
    let event_ids: Vec<Uuid> = published.iter().map(|event| event.event_id).collect();
    let search = sqlx::query_as(
        "select count(*), coalesce(array_agg(event_id) filter (where event_id = any($1)), '{}')
         from (select event_id from chassis.outbox order by position limit $2) as oldest",
    );
    let search = search.bind(event_ids).bind(OUTBOX_ROWS_MAX).fetch_one(db);
    let searched: sqlx::Result<(i64, Vec<Uuid>)> = db::with_timeout(OUTBOX_TIMEOUT, search).await;
    let (rows, found) = searched.ok()?;
    Some((found.into_iter().collect(), rows < OUTBOX_ROWS_MAX))
}
