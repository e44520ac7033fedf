//! The history of an order, read at once or followed while it grows.

use axum::Json as JsonResponse;
use axum::extract::State;
use axum::response::Response;
use chassis::{Caller, FeedEntry, LastEventId, Path, Problem, ServerSentEvent, label_request};
use chrono::{DateTime, Utc};
use events::orders::{CANCELLED, CONFIRMED};
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::{Api, find_order};
use crate::saga::Refusal;

/// An event of an order.
#[derive(Serialize, sqlx::FromRow, ToSchema)]
pub struct HistoryEntry {
    #[serde(skip)]
    order_id: Uuid,
    #[serde(skip)]
    position: i64,
    /// The topic of the event.
    #[schema(examples("orders.created"))]
    event: String,
    event_id: Uuid,
    /// The event itself, without its envelope.
    #[schema(value_type = Object)]
    detail: Value,
    /// When its publisher decided it, by the clock of the publisher's database.
    occurred_at: DateTime<Utc>,
    /// When this service committed it.
    recorded_at: DateTime<Utc>,
}

/// Positions are counted while the order's row is locked, so within an order they grow in the order of commits.
impl FeedEntry for HistoryEntry {
    const QUERY: &str =
        "select entry.* from unnest($1::uuid[], $2::bigint[]) as seen (order_id, position)
         cross join lateral (
             select order_id, position, event, event_id, detail, occurred_at, recorded_at
             from history
             where history.order_id = seen.order_id and history.position > seen.position
             order by position offset 0) as entry";

    fn subject(&self) -> Uuid {
        self.order_id
    }
    fn position(&self) -> i64 {
        self.position
    }
    fn id(&self) -> Uuid {
        self.event_id
    }
    fn event(&self) -> &str {
        &self.event
    }
    fn is_final(&self) -> bool {
        [CONFIRMED.name, CANCELLED.name].contains(&&*self.event)
    }
}

/// The history of an order.
#[derive(Serialize, ToSchema)]
pub struct History {
    order_id: Uuid,
    history: Vec<HistoryEntry>,
}

/// Shows every event of an order, in the sequence in which this service committed them.
#[utoipa::path(get, path = "/orders/{order_id}/history",
    security(("token" = ["orders:read"]), ("token" = ["support:read"])), responses(
    (status = 200, description = "The events, the oldest first.", body = History),
    (status = 404, description = "There is no such order."),
))]
pub async fn show_history(
    State(api): State<Api>,
    caller: Caller,
    Path(order_id): Path<Uuid>,
) -> Result<JsonResponse<History>, Problem> {
    let history = find_history(&api, &caller, order_id).await?;
    Ok(JsonResponse(History { order_id, history }))
}

async fn find_history(
    api: &Api,
    caller: &Caller,
    order_id: Uuid,
) -> Result<Vec<HistoryEntry>, Problem> {
    label_request("order_id", order_id);
    if !caller.reads_all_owners() {
        find_order(api, caller, order_id).await?;
    }
    // Positions are counted from 1.
    let query = sqlx::query_as(HistoryEntry::QUERY).bind(vec![order_id]).bind(vec![0_i64]);
    let history: Vec<HistoryEntry> = query.fetch_all(&api.db).await?;
    if history.is_empty() { Err(Refusal::NoSuchOrder.into()) } else { Ok(history) }
}

/// Follows an order until it ends, as server-sent events.
///
/// Each event of the order is one server-sent event: `id` is its event_id, `event` its name, and `data` its
/// entry in the history. The stream begins with the events that exist already, and ends after
/// `orders.confirmed` or `orders.cancelled`. A client resumes a stream that ends sooner with
/// `Last-Event-ID`, as browsers do by themselves.
#[utoipa::path(get, path = "/orders/{order_id}/events", params(LastEventId),
    security(("token" = ["orders:read"]), ("token" = ["support:read"])), responses(
    (status = 200, description = "The events.", body = ServerSentEvent, content_type = "text/event-stream"),
    (status = 204, description = "The client has received all events, and there will be no more."),
    (status = 404, description = "There is no such order."),
))]
pub async fn follow_order(
    State(api): State<Api>,
    caller: Caller,
    Path(order_id): Path<Uuid>,
    LastEventId(seen): LastEventId,
) -> Result<Response, Problem> {
    let log = find_history(&api, &caller, order_id).await?;
    api.feed.for_caller(&caller).event_stream(log, seen)
}
