//! What clients ask of the order service.

use axum::extract::State;
use axum::response::Response;
use axum::{Json as Answer, Router};
use chassis::books::{self, Sum};
use chassis::commands::Commands;
use chassis::extract::{Json, Nothing, Path, Query};
use chassis::headers::{IdempotencyKey, LastEventId, OptionalIdempotencyKey, Wait};
use chassis::idempotency::Once;
use chassis::openapi;
use chassis::pages::Limit;
use chassis::problem::Problem;
use chassis::reply::Reply;
use chassis::watch::{self, Watch};
use chrono::{DateTime, Utc};
use events::stock::{SKU_CHARS_MAX, SKU_RULE, is_sku, is_text};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgPool;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use uuid::Uuid;

use crate::order::{CancelOrder, Item, Order, Orders, PlaceOrder, Reason, Status, Wanted};
use crate::saga::{self, Refusal};

const LINES_MAX: usize = 50;
const QUANTITY_MAX: i32 = 1_000;

#[derive(Clone)]
pub struct Api {
    db: PgPool,
    commands: Commands<Orders>,
    watch: Watch<Entry>,
}

/// The API.
pub fn router(db: PgPool, commands: Commands<Orders>, watch: Watch<Entry>) -> Router {
    openapi::serve("order", routes()).with_state(Api { db, commands, watch })
}

/// Its routes, each with its description.
pub fn routes() -> OpenApiRouter<Api> {
    OpenApiRouter::new()
        .routes(routes!(place_order, list_orders))
        .routes(routes!(show_order))
        .routes(routes!(cancel_order))
        .routes(routes!(show_history))
        .routes(routes!(follow_order))
        .routes(routes!(list_items))
}

/// What a customer wants to order.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct OrderWish {
    #[schema(examples("01900000-0000-7000-8000-000000000001"))]
    customer_id: Uuid,
    #[schema(min_items = 1, max_items = 50)]
    lines: Vec<Wanted>,
}

impl OrderWish {
    /// The limits of an order, each named by its field.
    fn check(&self) -> Result<(), Problem> {
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
                return Err(Problem::invalid(sku, "stands on an earlier line already"));
            }
        }
        Ok(())
    }
}

/// Places an order.
///
/// It is durable when it is answered, and pending: payment and stock hear of it next. Prices are
/// this service's own. Needs this service's own database and nothing else.
#[utoipa::path(post, path = "/orders", params(OptionalIdempotencyKey), responses(
    (status = 201, description = "The order, pending.", body = Order),
    (status = 422, description = "`field` breaks a rule: an item that is not known, one that \
        stands on two lines, one in another currency than the lines before it, a total that can't \
        be counted. Or the key came before with another request."),
))]
async fn place_order(
    State(api): State<Api>,
    key: Option<IdempotencyKey>,
    Json(wish): Json<OrderWish>,
) -> Result<Reply, Problem> {
    wish.check()?;
    let once = key.map(|IdempotencyKey(key)| Once::new("/orders", &key, &wish));
    let OrderWish { customer_id, lines } = wish;
    let place = PlaceOrder { order_id: Uuid::now_v7(), customer_id, lines };
    let decide = |place: &PlaceOrder, orders: &mut Orders, at| {
        let event = saga::place_order(place, orders, at)?;
        let order = orders.order(place.order_id).ok_or_else(Problem::internal)?;
        Ok(Reply::created(format!("/orders/{}", place.order_id), order).publishing(event))
    };
    api.commands.run(place, once, decide).await
}

/// Cancels an order.
///
/// Payment and stock undo what they did for it. To cancel a cancelled one changes nothing and is fine.
#[utoipa::path(post, path = "/orders/{order_id}/cancel", params(OptionalIdempotencyKey), responses(
    (status = 200, description = "The order, cancelled.", body = Order),
    (status = 404, description = "There is no such order."),
    (status = 409, description = "The order is confirmed and can't be cancelled."),
))]
async fn cancel_order(
    State(api): State<Api>,
    key: Option<IdempotencyKey>,
    Path(order_id): Path<Uuid>,
    Nothing: Nothing,
) -> Result<Reply, Problem> {
    let path = format!("/orders/{order_id}/cancel");
    let once = key.map(|IdempotencyKey(key)| Once::new(path, &key, &()));
    let cancel = CancelOrder { order_id, reason: Reason::Customer };
    let decide = |cancel: &CancelOrder, orders: &mut Orders, at| {
        let event = saga::cancel_order(cancel, orders, at)?;
        let order = orders.order(cancel.order_id).ok_or_else(Problem::internal)?;
        Ok(Reply::ok(order).publishing(event))
    };
    api.commands.run(cancel, once, decide).await
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
            Refusal::TooMuch { nth } => Problem::invalid(
                format!("lines[{nth}].quantity"),
                "makes the order cost more than can be counted",
            ),
            Refusal::NoSuchOrder => no_such_order(),
            Refusal::AlreadyConfirmed => Problem::conflict(
                "order-confirmed",
                "the order is confirmed and can't be cancelled",
            ),
        }
    }
}

fn no_such_order() -> Problem {
    Problem::not_found("there is no such order")
}

/// Shows an order.
///
/// With `Prefer: wait=N` the answer is held back until the order is confirmed or cancelled, for N
/// seconds at most; then it shows the order as it is.
#[utoipa::path(get, path = "/orders/{order_id}", params(Wait), responses(
    (status = 200, description = "The order.", body = Order,
        headers(("Preference-Applied" = String, description = "For how long it could have waited."))),
    (status = 404, description = "There is no such order."),
))]
async fn show_order(
    State(api): State<Api>,
    Path(order_id): Path<Uuid>,
    wait: Wait,
) -> Result<Response, Problem> {
    let mut order = find_order(&api, order_id).await?;
    if let Wait(Some(within)) = wait
        && order.status == Status::Pending
    {
        api.watch.settled(order_id, within).await?;
        order = find_order(&api, order_id).await?;
    }
    Ok(wait.applied(Answer(order)))
}

async fn find_order(api: &Api, order_id: Uuid) -> Result<Order, Problem> {
    let order = sqlx::query_as(
        "select order_id, customer_id, status, reason, payment, stock, total_cents, currency,
                lines, created_at, ended_at, created_event_id, ended_event_id
         from orders where order_id = $1",
    )
    .bind(order_id)
    .fetch_optional(&api.db)
    .await?;
    order.ok_or_else(no_such_order)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct OrdersWanted {
    customer_id: Uuid,
    /// Only older orders than this one: `next` of the page before.
    after: Option<Uuid>,
    #[serde(default)]
    #[param(inline)]
    limit: Limit<100>,
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
/// Ordered by `order_id`, the greatest first: it begins with the time at which the order was placed.
#[utoipa::path(get, path = "/orders", params(OrdersWanted), responses(
    (status = 200, description = "A page of orders.", body = OrderList),
))]
async fn list_orders(
    State(api): State<Api>,
    Query(wanted): Query<OrdersWanted>,
) -> Result<Answer<OrderList>, Problem> {
    let OrdersWanted { customer_id, after, limit } = wanted;
    let mut orders: Vec<Order> = sqlx::query_as(
        "select order_id, customer_id, status, reason, payment, stock, total_cents, currency,
                lines, created_at, ended_at, created_event_id, ended_event_id
         from orders where customer_id = $1 and order_id < $2
         order by order_id desc limit $3",
    )
    .bind(customer_id)
    // No order has the greatest id of all.
    .bind(after.unwrap_or(Uuid::max()))
    .bind(limit.rows())
    .fetch_all(&api.db)
    .await?;
    let next = limit.page(&mut orders, |order| order.order_id);
    Ok(Answer(OrderList { orders, next }))
}

/// An event of an order.
#[derive(Serialize, sqlx::FromRow, ToSchema)]
pub struct Entry {
    #[serde(skip)]
    order_id: Uuid,
    #[serde(skip)]
    position: i64,
    /// The topic that it went through.
    #[schema(examples("orders.created"))]
    event: String,
    event_id: Uuid,
    /// The event itself, without its envelope.
    #[schema(value_type = Object)]
    detail: Value,
    /// When it was decided, by the clock of its publisher's database.
    occurred_at: DateTime<Utc>,
    /// When it became true here.
    recorded_at: DateTime<Utc>,
}

/// Positions are counted while the order's row is locked, so within an order they grow as it commits.
impl watch::Entry for Entry {
    const READ: &str =
        "select entry.order_id, entry.position, entry.event, entry.event_id, entry.detail,
                entry.occurred_at, entry.recorded_at
         from unnest($1::uuid[], $2::bigint[]) as seen (order_id, position)
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
    fn is_last(&self) -> bool {
        [events::orders::CONFIRMED.name, events::orders::CANCELLED.name].contains(&&*self.event)
    }
}

/// The life of an order.
#[derive(Serialize, ToSchema)]
struct History {
    order_id: Uuid,
    history: Vec<Entry>,
}

/// Shows every event of an order, in the sequence in which they became true here.
#[utoipa::path(get, path = "/orders/{order_id}/history", responses(
    (status = 200, description = "The events, the oldest first.", body = History),
    (status = 404, description = "There is no such order."),
))]
async fn show_history(
    State(api): State<Api>,
    Path(order_id): Path<Uuid>,
) -> Result<Answer<History>, Problem> {
    let history = find_history(&api, order_id).await?;
    Ok(Answer(History { order_id, history }))
}

async fn find_history(api: &Api, order_id: Uuid) -> Result<Vec<Entry>, Problem> {
    let history: Vec<Entry> = sqlx::query_as(
        "select order_id, event_id, position, event, detail, occurred_at, recorded_at
         from history where order_id = $1 order by position",
    )
    .bind(order_id)
    .fetch_all(&api.db)
    .await?;
    if history.is_empty() { Err(no_such_order()) } else { Ok(history) }
}

/// Follows an order until it ends, as server-sent events.
///
/// Each event of the order is one: `id` is its event_id, `event` its name, `data` the entry as in
/// the history. Those that are there already come first, then each as it happens, and the stream
/// ends with the order: after its `orders.confirmed` or `orders.cancelled`. A stream that ends sooner
/// is to be resumed with `Last-Event-ID`, as browsers do by themselves.
#[utoipa::path(get, path = "/orders/{order_id}/events", params(LastEventId), responses(
    (status = 200, description = "The events.", body = watch::Told, content_type = "text/event-stream"),
    (status = 204, description = "All was seen; there is nothing to come back for."),
    (status = 404, description = "There is no such order."),
))]
async fn follow_order(
    State(api): State<Api>,
    Path(order_id): Path<Uuid>,
    LastEventId(seen): LastEventId,
) -> Result<Response, Problem> {
    api.watch.stream(find_history(&api, order_id).await?, seen)
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct ItemsWanted {
    /// Only items after this SKU: `next` of the page before.
    #[param(min_length = 1, max_length = 64, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    after: Option<String>,
    #[serde(default)]
    #[param(inline)]
    limit: Limit<1_000>,
}

/// A page of items.
#[derive(Serialize, ToSchema)]
struct ItemList {
    items: Vec<Item>,
    /// Where the next page begins; null where there are no further items.
    #[schema(required)]
    next: Option<String>,
}

/// Lists what can be ordered, by SKU.
///
/// Ordered by `sku`, by its bytes in UTF-8. As far as stock has announced it; stock itself may be down.
#[utoipa::path(get, path = "/items", params(ItemsWanted), responses(
    (status = 200, description = "A page of items.", body = ItemList),
))]
async fn list_items(
    State(api): State<Api>,
    Query(ItemsWanted { after, limit }): Query<ItemsWanted>,
) -> Result<Answer<ItemList>, Problem> {
    // An older version may have taken an item whose SKU would be refused today: it is a place in the list all
    // the same.
    if after.as_deref().is_some_and(|after| !is_text(after, SKU_CHARS_MAX)) {
        return Err(Problem::invalid("after", SKU_RULE));
    }
    let mut items: Vec<Item> = sqlx::query_as(
        "select sku, name, price_cents, currency, version
         from items where sku > $1 order by sku limit $2",
    )
    .bind(after.unwrap_or_default())
    .bind(limit.rows())
    .fetch_all(&api.db)
    .await?;
    let next = limit.page(&mut items, |item| item.sku.clone());
    Ok(Answer(ItemList { items, next }))
}

#[derive(Serialize, sqlx::FromRow)]
struct Books {
    #[sqlx(flatten)]
    orders: Counts,
    confirmed_cents: Sum,
    balanced: bool,
}

#[derive(Serialize, sqlx::FromRow)]
struct Counts {
    pending: i64,
    confirmed: i64,
    cancelled: i64,
}

/// Balanced where each order stands as its legs say: a confirmed one was paid and reserved, and a
/// pending one lacks one of both, and nobody has said no.
///
/// What the confirmed ones are worth is what payment has taken, once none is pending and payment
/// has undone every cancelled one (its payment leg is declined, refunded or void), if nothing is
/// written off at payment.
pub fn books(db: PgPool) -> Router {
    books::router::<Books>(
        db,
        "select count(*) filter (where status = 'pending') as pending,
                count(*) filter (where status = 'confirmed') as confirmed,
                count(*) filter (where status = 'cancelled') as cancelled,
                coalesce(sum(total_cents) filter (where status = 'confirmed'), 0)::text
                    as confirmed_cents,
                count(*) filter (where case status
                    when 'confirmed' then not (payment = 'verified' and stock = 'reserved')
                    when 'pending' then payment = 'verified' and stock = 'reserved'
                        or payment not in ('waiting', 'verified')
                        or stock not in ('waiting', 'reserved')
                    end) = 0 as balanced
         from orders",
    )
}
