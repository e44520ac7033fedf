//! The API of the order service.

mod history;

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use chassis::{
    Caller, ChangeFeed, Commands, EmptyBody, FeedEntry, Idempotent, LastEventId, OptionalKey,
    PageLimit, Path, PreferWait, Problem, Query, Record, Reply, ServerSentEvent, label_request,
};
use chrono::{DateTime, Utc};
use events::stock::{SKU_CHARS_MAX, SKU_RULE, is_sku, is_text};
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::order::{
    CancelOrder, HistoryEntry, Item, LineRequest, Order, Orders, PlaceOrder, Status,
};
use crate::saga::Refusal;

const LINES_MAX: usize = 50;
const QUANTITY_MAX: i32 = 1_000;

type Feed = ChangeFeed<HistoryEntry>;

#[derive(Clone)]
pub struct Api {
    db: PgPool,
    commands: Commands<Orders>,
    feed: Feed,
    new_orders: NewOrders,
}

/// What settings say of new orders.
#[derive(Clone)]
pub struct NewOrders {
    /// The participants that they ask beside those whom every order asks.
    pub also_asks: Vec<String>,
    /// How long they may be pending.
    pub deadline: Option<Duration>,
}

/// The API.
pub fn router(
    db: PgPool,
    commands: Commands<Orders>,
    feed: Feed,
    new_orders: NewOrders,
) -> OpenApiRouter {
    routes().with_state(Api { db, commands, feed, new_orders })
}

/// The routes of the API, each with its description.
pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(place_order, list_orders))
        .routes(routes!(show_order))
        .routes(routes!(cancel_order))
        .routes(routes!(show_history))
        .routes(routes!(follow_order))
        .routes(routes!(list_items))
}

/// An order as a customer requests it.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct OrderRequest {
    #[schema(examples("01900000-0000-7000-8000-000000000001"))]
    customer_id: Uuid,
    #[schema(min_items = 1, max_items = 50)]
    lines: Vec<LineRequest>,
}

impl OrderRequest {
    /// The command of this customer. A refusal names the field.
    fn place(self, caller: &Caller, settings: NewOrders) -> Result<PlaceOrder, Problem> {
        if !caller.owns(self.customer_id) {
            let detail = "must be the customer whom the access token names";
            return Err(Problem::forbidden("customer_id", detail));
        }
        self.validate()?;
        let order_id = Uuid::now_v7();
        label_request("order_id", order_id);
        let OrderRequest { customer_id, lines } = self;
        let NewOrders { also_asks, deadline } = settings;
        Ok(PlaceOrder { order_id, customer_id, lines, also_asks, deadline })
    }

    /// Checks the limits of an order.
    fn validate(&self) -> Result<(), Problem> {
        if !(1..=LINES_MAX).contains(&self.lines.len()) {
            return Err(Problem::invalid("lines", format!("must be 1 to {LINES_MAX} lines")));
        }
        for (nth, line) in self.lines.iter().enumerate() {
            if !(1..=QUANTITY_MAX).contains(&line.quantity) {
                let detail = format!("must be 1 to {QUANTITY_MAX}");
                return Err(Problem::invalid(format!("lines[{nth}].quantity"), detail));
            }
            let sku = format!("lines[{nth}].sku");
            if !is_sku(&line.sku) {
                return Err(Problem::invalid(sku, SKU_RULE));
            }
            if self.lines[..nth].iter().any(|earlier| earlier.sku == line.sku) {
                return Err(Problem::invalid(sku, "is on an earlier line already"));
            }
        }
        Ok(())
    }
}

/// Places an order.
///
/// When the answer arrives, the order is durable and pending; payment and stock receive it next. The
/// prices are those that `GET /items` shows. An order is accepted also while payment, stock or Kafka are down.
/// The customer is the subject of the token: for another one the answer is 403.
#[utoipa::path(post, path = "/orders", params(Idempotent<(), OptionalKey>), request_body = OrderRequest,
    security(("token" = ["orders:write"])), responses(
    (status = 201, description = "The order, pending.", body = Order),
    (status = 422, description = "`field` breaks a rule: an item that is unknown, that is on two \
        lines, or that has another currency than the lines before it; or a total that is too large. \
        Or the key was used with another request."),
))]
async fn place_order(
    State(api): State<Api>,
    caller: Caller,
    request: Idempotent<OrderRequest, OptionalKey>,
) -> Result<Reply, Problem> {
    api.commands.execute(request.try_map(|order| order.place(&caller, api.new_orders))?).await
}

/// Cancels an order.
///
/// Payment and stock undo what they did for it. Cancelling a cancelled order changes nothing and succeeds.
#[utoipa::path(post, path = "/orders/{order_id}/cancel", params(Idempotent<(), OptionalKey>),
    security(("token" = ["orders:write"])), responses(
    (status = 200, description = "The order, cancelled.", body = Order),
    (status = 404, description = "There is no such order."),
    (status = 409, description = "The order is confirmed and can't be cancelled."),
))]
async fn cancel_order(
    State(api): State<Api>,
    caller: Caller,
    Path(order_id): Path<Uuid>,
    request: Idempotent<EmptyBody, OptionalKey>,
) -> Result<Reply, Problem> {
    label_request("order_id", order_id);
    let cancel = CancelOrder { order_id, caller };
    api.commands.execute(request.map(|EmptyBody| cancel)).await
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        match refusal {
            Refusal::NoSuchItem { nth } => {
                Problem::invalid(format!("lines[{nth}].sku"), "there is no such item")
            }
            Refusal::MixedCurrencies { nth } => {
                let detail = "is sold in another currency than the lines before it";
                Problem::invalid(format!("lines[{nth}].sku"), detail)
            }
            Refusal::TotalTooLarge { nth } => Problem::invalid(
                format!("lines[{nth}].quantity"),
                "makes the total of the order too large",
            ),
            Refusal::NoSuchOrder => Problem::not_found("there is no such order"),
            Refusal::AlreadyConfirmed => Problem::conflict(
                "order-confirmed",
                "the order is confirmed and can't be cancelled",
            ),
        }
    }
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct OrderQuery {
    /// Show the order as it was at this time.
    at: Option<DateTime<Utc>>,
}

/// Shows an order.
///
/// With `Prefer: wait=N` the service answers when the order is confirmed or cancelled, or after N seconds,
/// with the order as it is then. With `at` it folds the events that it had committed by that time, does not wait, and
/// answers 404 if the order was not placed yet.
#[utoipa::path(get, path = "/orders/{order_id}", params(OrderQuery, PreferWait),
    security(("token" = ["orders:read"]), ("token" = ["support:read"])), responses(
    (status = 200, description = "The order.", body = Order,
        headers(("Preference-Applied" = String, description = "For how long it could have waited."))),
    (status = 404, description = "There is no such order."),
    (status = 409, description = "With `at`, of type `/problems/broken-history`: the history has an event that \
        cannot be at its place."),
))]
async fn show_order(
    State(api): State<Api>,
    caller: Caller,
    Path(order_id): Path<Uuid>,
    Query(OrderQuery { at }): Query<OrderQuery>,
    wait: PreferWait,
) -> Result<Response, Problem> {
    if let Some(at) = at {
        let history = find_history(&api, &caller, order_id).await?;
        let order = Order::fold(history.iter().take_while(|entry| entry.recorded_at <= at))?;
        return Ok(Json(order.ok_or(Refusal::NoSuchOrder)?).into_response());
    }
    let mut order = find_order(&api, &caller, order_id).await?;
    if let PreferWait(Some(within)) = wait
        && order.status == Status::Pending
    {
        api.feed.for_caller(&caller).wait_until_final(order_id, within).await?;
        order = find_order(&api, &caller, order_id).await?;
    }
    Ok(wait.preference_applied(Json(order)))
}

/// An order that the caller may see. Every other order is as if there were none.
async fn find_order(api: &Api, caller: &Caller, order_id: Uuid) -> Result<Order, Problem> {
    label_request("order_id", order_id);
    let order = Order::find(&api.db, order_id).await?;
    let order = order.filter(|order| caller.may_read(order.customer_id));
    order.ok_or_else(|| Refusal::NoSuchOrder.into())
}

/// The history of an order.
#[derive(Serialize, ToSchema)]
struct History {
    order_id: Uuid,
    history: Vec<HistoryEntry>,
}

/// Shows every event of an order, in the sequence in which this service committed them.
#[utoipa::path(get, path = "/orders/{order_id}/history",
    security(("token" = ["orders:read"]), ("token" = ["support:read"])), responses(
    (status = 200, description = "The events, the oldest first.", body = History),
    (status = 404, description = "There is no such order."),
))]
async fn show_history(
    State(api): State<Api>,
    caller: Caller,
    Path(order_id): Path<Uuid>,
) -> Result<Json<History>, Problem> {
    let history = find_history(&api, &caller, order_id).await?;
    Ok(Json(History { order_id, history }))
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
async fn follow_order(
    State(api): State<Api>,
    caller: Caller,
    Path(order_id): Path<Uuid>,
    LastEventId(seen): LastEventId,
) -> Result<Response, Problem> {
    let log = find_history(&api, &caller, order_id).await?;
    api.feed.for_caller(&caller).event_stream(log, seen)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct OrdersQuery {
    customer_id: Uuid,
    /// Only orders that are older than this one: `next` of the previous page.
    after: Option<Uuid>,
    #[serde(default)]
    #[param(inline)]
    limit: PageLimit<100>,
}

/// A page of a customer's orders.
#[derive(Serialize, ToSchema)]
struct OrderList {
    orders: Vec<Order>,
    /// Where the next page begins; null where there are no further orders.
    #[schema(required)]
    next: Option<Uuid>,
}

/// Lists a customer's orders, the newest first.
///
/// Ordered by `order_id`, the greatest first. The id begins with the time at which the order was placed.
/// For a customer other than the subject of the token, the list is empty.
#[utoipa::path(get, path = "/orders", params(OrdersQuery),
    security(("token" = ["orders:read"]), ("token" = ["support:read"])), responses(
    (status = 200, description = "A page of orders.", body = OrderList),
))]
async fn list_orders(
    State(api): State<Api>,
    caller: Caller,
    Query(OrdersQuery { customer_id, after, limit }): Query<OrdersQuery>,
) -> Result<Json<OrderList>, Problem> {
    if !caller.may_read(customer_id) {
        return Ok(Json(OrderList { orders: Vec::new(), next: None }));
    }
    let page =
        Order::select("where customer_id = $1 and order_id < $2 order by order_id desc limit $3");
    // No order has the greatest id.
    let page = page.bind(customer_id).bind(after.unwrap_or(Uuid::max())).bind(limit.query_limit());
    let mut orders = page.fetch_all(&api.db).await?;
    let next = limit.split_page(&mut orders, |order| order.order_id);
    Ok(Json(OrderList { orders, next }))
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

/// Lists the items that can be ordered.
///
/// Ordered by `sku`, by its bytes in UTF-8. The list has the items that stock has published; stock itself may be down.
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
