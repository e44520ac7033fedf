//! Handled events on the admin port: when this service handled an event, after how many attempts, and the dead letters
//! that have its id.

use std::collections::HashMap;
use std::sync::Arc;

use axum::extract::State;
use chrono::{DateTime, Utc};
use messaging::dead_letter::{self, DeadLetterOfEvent};
use messaging::inbox;
use serde::Serialize;
use sqlx::PgPool;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::http::extractors::{Json, Query};
use crate::http::problem::Problem;

/// Events that one request names, at most.
const EVENTS_MAX: usize = 50;

/// Dead letters that are shown of one event, the newest ones: every duplicate of its record can be one.
const DEAD_LETTERS_MAX: i64 = 10;

/// The topics that the service handles.
type HandledTopics = Arc<[&'static str]>;

pub(super) fn router(db: PgPool, topics: HandledTopics) -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(list_handled_events)).with_state((db, topics))
}

#[derive(Serialize, ToSchema)]
struct HandledEvents {
    /// The topics whose events this service handles. It never handles an event of another topic.
    #[schema(value_type = Vec<String>)]
    topics: HandledTopics,
    events: Vec<HandledEvent>,
}

/// What this service did with an event.
#[derive(Serialize, ToSchema)]
struct HandledEvent {
    event_id: Uuid,
    /// When it was handled. Null if the inbox has no row of it: it was not handled here, or more than 30 days ago.
    #[schema(required)]
    received_at: Option<DateTime<Utc>>,
    /// The number of attempts at handling it.
    #[schema(required)]
    attempts: Option<i32>,
    /// The newest ten.
    dead_letters: Vec<DeadLetterOfEvent>,
}

/// Shows which topics this service handles, and what it did with events, in the order of the request.
#[utoipa::path(get, path = "/handled-events",
    params(("event_id" = Vec<Uuid>, Query, min_items = 1, max_items = 50,
        description = "The id of an event, once for each event.")),
    responses((status = 200, description = "The events.", body = HandledEvents)))]
async fn list_handled_events(
    State((db, topics)): State<(PgPool, HandledTopics)>,
    Query(parameters): Query<Vec<(String, String)>>,
) -> Result<Json<HandledEvents>, Problem> {
    let event_ids = parse_event_ids(&parameters)?;
    let handled: HashMap<Uuid, (DateTime<Utc>, i32)> = inbox::find(&db, &event_ids).await?;
    let letters = dead_letter::list_by_event(&db, &event_ids, DEAD_LETTERS_MAX).await?;
    let mut by_event: HashMap<Uuid, Vec<DeadLetterOfEvent>> = HashMap::new();
    for letter in letters {
        by_event.entry(letter.event_id).or_default().push(letter);
    }
    let event = |event_id: Uuid| HandledEvent {
        event_id,
        received_at: handled.get(&event_id).map(|(received_at, _)| *received_at),
        attempts: handled.get(&event_id).map(|(_, attempts)| *attempts),
        dead_letters: by_event.remove(&event_id).unwrap_or_default(),
    };
    let events = event_ids.into_iter().map(event).collect();
    Ok(Json(HandledEvents { topics, events }))
}

fn parse_event_ids(parameters: &[(String, String)]) -> Result<Vec<Uuid>, Problem> {
    let mut event_ids = Vec::with_capacity(parameters.len());
    for (name, value) in parameters {
        if name != "event_id" {
            return Err(Problem::invalid(name, "is not known: the only parameter is `event_id`"));
        }
        let event_id = value.parse().map_err(|_| Problem::invalid("event_id", "must be a UUID"))?;
        if !event_ids.contains(&event_id) {
            event_ids.push(event_id);
        }
    }
    if !(1..=EVENTS_MAX).contains(&event_ids.len()) {
        let detail = format!("must be given for 1 to {EVENTS_MAX} events");
        return Err(Problem::invalid("event_id", detail));
    }
    Ok(event_ids)
}
