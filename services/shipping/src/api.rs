//! The API of the shipping service.

use axum::Json;
use axum::extract::State;
use chassis::{
    Caller, Commands, EmptyBody, Idempotent, OptionalKey, Path, Problem, Record, Reply,
    label_request,
};
use serde::Serialize;
use sqlx::PgPool;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::saga::Refusal;
use crate::shipment::{CancelShipment, HistoryEntry, Shipment, Shipments};

#[derive(Clone)]
pub struct Api {
    db: PgPool,
    commands: Commands<Shipments>,
}

/// The API.
pub fn router(db: PgPool, commands: Commands<Shipments>) -> OpenApiRouter {
    routes().with_state(Api { db, commands })
}

/// The routes of the API, each with its description.
pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new().routes(routes!(show_shipment)).routes(routes!(cancel_shipment))
}

/// A shipment with its history.
#[derive(Serialize, ToSchema)]
struct ShipmentWithHistory {
    #[serde(flatten)]
    shipment: Shipment,
    /// What happened to it, the oldest first.
    history: Vec<HistoryEntry>,
}

/// Shows the shipment of an order, and what happened to it.
#[utoipa::path(get, path = "/shipments/{order_id}",
    security(("token" = ["orders:read"]), ("token" = ["support:read"])), responses(
    (status = 200, description = "The shipment.", body = ShipmentWithHistory),
    (status = 404, description = "There is no shipment of this order, or not yet."),
))]
async fn show_shipment(
    State(api): State<Api>,
    caller: Caller,
    Path(order_id): Path<Uuid>,
) -> Result<Json<ShipmentWithHistory>, Problem> {
    label_request("order_id", order_id);
    let shipment = Shipment::find(&api.db, order_id).await?;
    let shipment = shipment.filter(|shipment| caller.may_read(shipment.customer_id));
    let shipment = shipment.ok_or(Refusal::NoSuchShipment)?;
    let history = HistoryEntry::select("where order_id = $1 order by position").bind(order_id);
    let history = history.fetch_all(&api.db).await?;
    Ok(Json(ShipmentWithHistory { shipment, history }))
}

/// Cancels a shipment that the carrier has not collected.
///
/// The answer is its state now: `cancelling`. The carrier may still refuse, and then the shipment continues. Cancelling a
/// shipment twice changes nothing and succeeds.
#[utoipa::path(post, path = "/shipments/{order_id}/cancel", params(Idempotent<(), OptionalKey>),
    security(("token" = ["orders:write"])), responses(
    (status = 200, description = "The shipment.", body = Shipment),
    (status = 404, description = "There is no such shipment."),
    (status = 409, description = "The shipment is not booked yet: try later. Or it is collected, or has ended."),
))]
async fn cancel_shipment(
    State(api): State<Api>,
    caller: Caller,
    Path(order_id): Path<Uuid>,
    request: Idempotent<EmptyBody, OptionalKey>,
) -> Result<Reply, Problem> {
    label_request("order_id", order_id);
    let cancel = CancelShipment { order_id, caller };
    api.commands.execute(request.map(|EmptyBody| cancel)).await
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        match refusal {
            Refusal::NoSuchShipment => Problem::not_found("there is no shipment of this order"),
            Refusal::NotBooked => Problem::conflict(
                "shipment-not-booked",
                "the shipment is not booked yet: try later",
            ),
            Refusal::TooLate => {
                Problem::conflict("shipment-under-way", "the shipment is collected, or has ended")
            }
        }
    }
}

/// Balanced if each shipment has all entries of its history, and its state is that of the last one.
pub const BOOKS: &str = "
    select (select coalesce(json_object_agg(state, number), '{}')
            from (select state, count(*) as number from shipments group by state) as numbers) as shipments,
           coalesce(sum(entries), 0)::bigint as history,
           count(*) filter (where not coalesce(last_position = entries and state = last_state, false)) = 0
               as balanced
    from shipments
    full join (select order_id, count(*) as entries,
                      (array_agg(state order by position desc))[1] as last_state
               from shipment_history group by order_id) as history using (order_id)";
