//! The API of the stock service.

use axum::Json;
use axum::extract::State;
use chassis::{
    Commands, GeneratedKey, Idempotent, PageLimit, Path, Problem, Query, Record, Reply,
    deserialize_integer, label_request,
};
use events::stock::{NAME_RULE, SKU_CHARS_MAX, SKU_RULE, is_name, is_sku, is_text};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::saga::Refusal;
use crate::stock::{Delivery, Item, PutItem, Reservation, Warehouse};

/// The limits of requests. The schemas of the fields repeat them.
const PRICE_CENTS_MAX: i64 = 1_000_000_000;
const QUANTITY_MAX: i64 = 1_000_000_000;

#[derive(Clone)]
pub struct Api {
    db: PgPool,
    commands: Commands<Warehouse>,
    currency: String,
}

/// The API.
pub fn router(db: PgPool, commands: Commands<Warehouse>, currency: String) -> OpenApiRouter {
    routes().with_state(Api { db, commands, currency })
}

/// The routes of the API, each with its description.
pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(list_items))
        .routes(routes!(show_item, put_item))
        .routes(routes!(receive_delivery))
        .routes(routes!(show_reservation))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ItemsQuery {
    /// Only items after this SKU: `next` of the previous page.
    #[param(min_length = 1, max_length = 64, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    after: Option<String>,
    #[serde(default)]
    #[param(inline)]
    limit: PageLimit<1_000>,
}

/// A page of items.
#[derive(Serialize, ToSchema)]
struct ItemList {
    items: Vec<Item>,
    /// Where the next page begins; null where there are no further items.
    #[schema(required)]
    next: Option<String>,
}

/// Lists items, with the units of each.
///
/// Ordered by `sku`, by its bytes in UTF-8.
#[utoipa::path(get, path = "/items", params(ItemsQuery), security(()), responses(
    (status = 200, description = "A page of items.", body = ItemList),
))]
async fn list_items(
    State(api): State<Api>,
    Query(ItemsQuery { after, limit }): Query<ItemsQuery>,
) -> Result<Json<ItemList>, Problem> {
    // The list continues after any SKU that can be stored: an older version may have stored an item whose SKU
    // would be refused today.
    if after.as_deref().is_some_and(|after| !is_text(after, SKU_CHARS_MAX)) {
        return Err(Problem::invalid("after", SKU_RULE));
    }
    let mut items =
        Item::find_after(&api.db, after.unwrap_or_default(), limit.query_limit()).await?;
    let next = limit.split_page(&mut items, |item| item.sku.clone());
    Ok(Json(ItemList { items, next }))
}

/// The item of the path.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
struct ItemPath {
    /// In Unicode's normalization form NFKC, without invisible characters and without blanks other than the
    /// space, which is neither first nor last.
    #[param(min_length = 1, max_length = 64, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    #[param(example = "deck-lantern")]
    sku: String,
}

/// Shows an item, with its units.
#[utoipa::path(get, path = "/items/{sku}", params(ItemPath), security(()), responses(
    (status = 200, description = "The item.", body = Item),
    (status = 404, description = "There is no such item."),
    (status = 422, description = "This can't be a SKU."),
))]
async fn show_item(
    State(api): State<Api>,
    Path(ItemPath { sku }): Path<ItemPath>,
) -> Result<Json<Item>, Problem> {
    let item = Item::find(&api.db, valid_sku(sku)?).await?;
    item.map(Json).ok_or_else(no_such_item)
}

/// The new name and price of an item.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ItemRequest {
    /// In Unicode's normalization form NFC, without format characters other than joiners, and with no blank
    /// first or last.
    #[schema(min_length = 1, max_length = 200, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    #[schema(examples("Deck lantern, storm-proof"))]
    name: String,
    #[schema(minimum = 0, maximum = 1_000_000_000, examples(5_990))]
    #[serde(deserialize_with = "deserialize_integer")]
    price_cents: i64,
}

/// Creates an item, or changes its name and price.
#[utoipa::path(put, path = "/items/{sku}", params(ItemPath), request_body = ItemRequest,
    security(("token" = ["items:write"])), responses(
    (status = 200, description = "The item, as it is now.", body = Item),
    (status = 201, description = "The new item, without any units.", body = Item),
))]
async fn put_item(
    State(api): State<Api>,
    Path(ItemPath { sku }): Path<ItemPath>,
    request: Idempotent<ItemRequest, GeneratedKey>,
) -> Result<Reply, Problem> {
    let put = request.try_map(|request| request.put(sku, &api.currency))?;
    api.commands.execute(put).await
}

impl ItemRequest {
    /// The command that puts this item. A refusal names the field.
    fn put(self, sku: String, currency: &str) -> Result<PutItem, Problem> {
        let sku = valid_sku(sku)?;
        // Clients resolve these two in a path before they send it, so that no request could reach such an item.
        if [".", ".."].contains(&&*sku) {
            return Err(Problem::invalid("sku", "can't be `.` or `..`"));
        }
        let ItemRequest { name, price_cents } = self;
        if !is_name(&name) {
            return Err(Problem::invalid("name", NAME_RULE));
        }
        if !(0..=PRICE_CENTS_MAX).contains(&price_cents) {
            return Err(Problem::invalid("price_cents", "must be 0 to 1,000,000,000"));
        }
        Ok(PutItem { sku, name, price_cents, currency: currency.to_owned() })
    }
}

/// Units of an item that arrived.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct DeliveryRequest {
    #[schema(minimum = 1, maximum = 1_000_000_000, examples(100))]
    #[serde(deserialize_with = "deserialize_integer")]
    quantity: i64,
}

/// Receives a delivery: more units of an item.
#[utoipa::path(post, path = "/items/{sku}/deliveries", params(ItemPath, Idempotent<()>),
    request_body = DeliveryRequest, security(("token" = ["deliveries:write"])), responses(
    (status = 201, description = "The item, with what arrived.", body = Item),
    (status = 404, description = "There is no such item."),
    (status = 422, description = "`field` breaks a rule, or all deliveries together would be too large. \
        Or the key was used with another request."),
))]
async fn receive_delivery(
    State(api): State<Api>,
    Path(ItemPath { sku }): Path<ItemPath>,
    request: Idempotent<DeliveryRequest>,
) -> Result<Reply, Problem> {
    api.commands.execute(request.try_map(|request| request.delivery(sku))?).await
}

impl DeliveryRequest {
    /// The command that receives it. A refusal names the field.
    fn delivery(self, sku: String) -> Result<Delivery, Problem> {
        let (sku, quantity) = (valid_sku(sku)?, self.quantity);
        if !(1..=QUANTITY_MAX).contains(&quantity) {
            return Err(Problem::invalid("quantity", "must be 1 to 1,000,000,000"));
        }
        Ok(Delivery { delivery_id: Uuid::now_v7(), sku, quantity })
    }
}

/// Shows what stock did for an order, and why.
///
/// Stock does not know the customer of an order, so no customer may ask.
#[utoipa::path(get, path = "/reservations/{order_id}", security(("token" = ["support:read"])), responses(
    (status = 200, description = "The reservation. It is void if the cancellation of the order \
        arrived before the order.", body = Reservation),
    (status = 404, description = "There is no reservation for this order, or not yet."),
))]
async fn show_reservation(
    State(api): State<Api>,
    Path(order_id): Path<Uuid>,
) -> Result<Json<Reservation>, Problem> {
    label_request("order_id", order_id);
    let reservation = Reservation::find(&api.db, order_id).await?;
    let missing = || Problem::not_found("there is no reservation for this order");
    reservation.map(Json).ok_or_else(missing)
}

fn valid_sku(sku: String) -> Result<String, Problem> {
    if is_sku(&sku) { Ok(sku) } else { Err(Problem::invalid("sku", SKU_RULE)) }
}

fn no_such_item() -> Problem {
    Problem::not_found("there is no such item")
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        match refusal {
            Refusal::NoSuchItem => no_such_item(),
            Refusal::LimitExceeded => {
                Problem::invalid("quantity", "makes all deliveries of this item too large")
            }
        }
    }
}

/// Balanced if, for each item, the delivered units are available or reserved, its deliveries add up to the delivered
/// ones, and its reservations to the reserved ones.
pub const BOOKS: &str = "
    select coalesce(sum(delivered), 0) as delivered,
           coalesce(sum(available), 0) as available,
           coalesce(sum(reserved), 0) as reserved,
           count(*) filter (where not (
               coalesce(delivered = available + reserved, true)
               and coalesce(delivered, 0) = coalesce(delivered_quantity, 0)
               and coalesce(reserved, 0) = coalesce(reserved_quantity, 0))) = 0 as balanced
    from items
    full join (select sku, sum(quantity) as delivered_quantity
               from deliveries group by sku) as deliveries using (sku)
    full join (select line ->> 'sku' as sku, sum((line ->> 'quantity')::bigint) as reserved_quantity
               from reservations, jsonb_array_elements(lines) as line
               where state = 'reserved' group by 1) as reservations using (sku)";
