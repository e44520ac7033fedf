//! What clients ask of the order service.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use chassis::commands::{Commands, Reply};
use chassis::extract::{IdempotencyKey, Json, Path, Query};
use chassis::idempotency::Once;
use chassis::loss::{self, WrittenOff};
use chassis::problem::Problem;
use chrono::{DateTime, Utc};
use events::orders::CancelReason;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgPool;
use uuid::Uuid;

use crate::order::{CancelOrder, Item, Order, Orders, PlaceOrder, Wanted};
use crate::saga::{self, Refusal};

const LINES_MAX: usize = 50;
const QUANTITY_MAX: i32 = 1_000;
const SKU_CHARS_MAX: usize = 64;

/// Orders and articles listed at a time.
const ORDERS_LISTED_MAX: i64 = 100;
const ITEMS_LISTED_MAX: i64 = 1_000;

#[derive(Clone)]
struct Api {
    db: PgPool,
    commands: Commands<Orders>,
}

/// The API.
pub fn router(db: PgPool, commands: Commands<Orders>) -> Router {
    Router::new()
        .route("/orders", post(place_order).get(list_orders))
        .route("/orders/{order_id}", get(show_order))
        .route("/orders/{order_id}/cancel", post(cancel_order))
        .route("/orders/{order_id}/history", get(show_history))
        .route("/items", get(list_items))
        .with_state(Api { db, commands })
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct OrderWish {
    customer_id: Uuid,
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
            let characters = line.sku.chars().count();
            if !(1..=SKU_CHARS_MAX).contains(&characters) || line.sku.chars().any(char::is_control)
            {
                let rule = "must have 1 to 64 characters, none of them a control character";
                return Err(Problem::invalid(sku, rule));
            }
            if self.lines[..nth].iter().any(|earlier| earlier.sku == line.sku) {
                return Err(Problem::invalid(sku, "stands on an earlier line already"));
            }
        }
        Ok(())
    }
}

/// A customer places an order. Needs this service's own database and nothing else.
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

/// A customer cancels an order. To cancel a cancelled one changes nothing and is fine.
async fn cancel_order(
    State(api): State<Api>,
    key: Option<IdempotencyKey>,
    Path(order_id): Path<Uuid>,
) -> Result<Reply, Problem> {
    let path = format!("/orders/{order_id}/cancel");
    let once = key.map(|IdempotencyKey(key)| Once::new(path, &key, &()));
    let cancel = CancelOrder { order_id, reason: CancelReason::Customer };
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

async fn show_order(
    State(api): State<Api>,
    Path(order_id): Path<Uuid>,
) -> Result<Answer<Order>, Problem> {
    let order = sqlx::query_as("select * from orders where order_id = $1")
        .bind(order_id)
        .fetch_optional(&api.db)
        .await?;
    order.map(Answer).ok_or_else(no_such_order)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Whose {
    customer_id: Uuid,
}

#[derive(Serialize)]
struct OrderList {
    orders: Vec<Order>,
    next: Option<String>,
}

/// A customer's newest orders.
async fn list_orders(
    State(api): State<Api>,
    Query(whose): Query<Whose>,
) -> Result<Answer<OrderList>, Problem> {
    let orders = sqlx::query_as(
        "select * from orders where customer_id = $1 order by order_id desc limit $2",
    )
    .bind(whose.customer_id)
    .bind(ORDERS_LISTED_MAX)
    .fetch_all(&api.db)
    .await?;
    Ok(Answer(OrderList { orders, next: None }))
}

#[derive(Serialize, sqlx::FromRow)]
struct Entry {
    event: String,
    event_id: Uuid,
    detail: Value,
    occurred_at: DateTime<Utc>,
    recorded_at: DateTime<Utc>,
}

#[derive(Serialize)]
struct History {
    order_id: Uuid,
    history: Vec<Entry>,
}

/// Every event of an order, in the order in which they became true here.
async fn show_history(
    State(api): State<Api>,
    Path(order_id): Path<Uuid>,
) -> Result<Answer<History>, Problem> {
    let history: Vec<Entry> = sqlx::query_as(
        "select event, event_id, detail, occurred_at, recorded_at from history
         where order_id = $1 order by position",
    )
    .bind(order_id)
    .fetch_all(&api.db)
    .await?;
    match history.is_empty() {
        true => Err(no_such_order()),
        false => Ok(Answer(History { order_id, history })),
    }
}

#[derive(Serialize)]
struct Items {
    items: Vec<Item>,
    next: Option<String>,
}

/// What can be ordered, as far as stock has announced it; stock itself may be down.
async fn list_items(State(api): State<Api>) -> Result<Answer<Items>, Problem> {
    let items = sqlx::query_as("select * from items order by sku limit $1")
        .bind(ITEMS_LISTED_MAX)
        .fetch_all(&api.db)
        .await?;
    Ok(Answer(Items { items, next: None }))
}

#[derive(Serialize)]
struct Books {
    orders: Counts,
    confirmed_cents: i64,
    balanced: bool,
    /// With dead letters that were discarded.
    written_off: Vec<WrittenOff>,
}

#[derive(Serialize, sqlx::FromRow)]
struct Counts {
    pending: i64,
    confirmed: i64,
    cancelled: i64,
    #[serde(skip)]
    confirmed_cents: i64,
    #[serde(skip)]
    total: i64,
}

/// Every order is in exactly one state; what the confirmed ones are worth is what payment has taken,
/// once none is pending.
pub fn books(db: PgPool) -> Router {
    let books = async |State(db): State<PgPool>| -> Result<Answer<Books>, Problem> {
        let orders: Counts = sqlx::query_as(
            "select count(*) filter (where status = 'pending') as pending,
                    count(*) filter (where status = 'confirmed') as confirmed,
                    count(*) filter (where status = 'cancelled') as cancelled,
                    coalesce(sum(total_cents) filter (where status = 'confirmed'), 0)::bigint
                        as confirmed_cents,
                    count(*) as total
             from orders",
        )
        .fetch_one(&db)
        .await?;
        let balanced = orders.pending + orders.confirmed + orders.cancelled == orders.total;
        let confirmed_cents = orders.confirmed_cents;
        let written_off = loss::written_off(&db).await?;
        Ok(Answer(Books { orders, confirmed_cents, balanced, written_off }))
    };
    Router::new().route("/books", get(books)).with_state(db)
}
