//! What clients ask of the stock service.

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json as Answer, Router};
use chassis::commands::{Commands, Reply};
use chassis::extract::{IdempotencyKey, Json, Path};
use chassis::idempotency::Once;
use chassis::loss::{self, WrittenOff};
use chassis::problem::Problem;
use serde::{Deserialize, Serialize};
use sqlx::PgPool;
use uuid::Uuid;

use crate::saga::{self, Refusal};
use crate::stock::{Delivery, Item, PutItem, Reservation, Warehouse};

/// Articles listed at a time.
const LISTED_MAX: i64 = 1_000;

#[derive(Clone)]
struct Api {
    db: PgPool,
    commands: Commands<Warehouse>,
    currency: String,
}

/// The API.
pub fn router(db: PgPool, commands: Commands<Warehouse>, currency: String) -> Router {
    Router::new()
        .route("/items", get(list_items))
        .route("/items/{sku}", get(show_item).put(put_item))
        .route("/items/{sku}/deliveries", post(take_in))
        .route("/reservations/{order_id}", get(show_reservation))
        .with_state(Api { db, commands, currency })
}

#[derive(Serialize)]
struct Items {
    items: Vec<Item>,
    next: Option<String>,
}

/// Every article, by SKU, with what there is of it.
async fn list_items(State(api): State<Api>) -> Result<Answer<Items>, Problem> {
    let items = sqlx::query_as("select * from items order by sku limit $1")
        .bind(LISTED_MAX)
        .fetch_all(&api.db)
        .await?;
    Ok(Answer(Items { items, next: None }))
}

async fn show_item(
    State(api): State<Api>,
    Path(sku): Path<String>,
) -> Result<Answer<Item>, Problem> {
    let item = sqlx::query_as("select * from items where sku = $1")
        .bind(valid_sku(sku)?)
        .fetch_optional(&api.db)
        .await?;
    item.map(Answer).ok_or_else(no_such_item)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ItemWish {
    name: String,
    price_cents: i64,
}

/// Makes an article, or changes its name and price.
async fn put_item(
    State(api): State<Api>,
    Path(sku): Path<String>,
    Json(wish): Json<ItemWish>,
) -> Result<Reply, Problem> {
    let sku = valid_sku(sku)?;
    let ItemWish { name, price_cents } = wish;
    if !(1..=200).contains(&name.chars().count()) || name.chars().any(char::is_control) {
        return Err(Problem::invalid(
            "name",
            "must have 1 to 200 characters, none of them a control character",
        ));
    }
    if !(0..=1_000_000_000).contains(&price_cents) {
        return Err(Problem::invalid("price_cents", "must be 0 to 1,000,000,000"));
    }
    let put = PutItem { sku, name, price_cents, currency: api.currency.clone() };
    let decide = |put: &PutItem, warehouse: &mut Warehouse, at| {
        let known = warehouse.item(&put.sku).is_some();
        let event = saga::put_item(put, warehouse, at);
        let item = warehouse.item(&put.sku).ok_or_else(Problem::internal)?;
        let reply = match known {
            true => Reply::ok(item),
            false => Reply::created(place_of(&put.sku), item),
        };
        Ok(reply.publishing(event))
    };
    api.commands.run(put, None, decide).await
}

#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct DeliveryWish {
    quantity: i64,
}

/// More of an article arrived.
async fn take_in(
    State(api): State<Api>,
    IdempotencyKey(key): IdempotencyKey,
    Path(sku): Path<String>,
    Json(wish): Json<DeliveryWish>,
) -> Result<Reply, Problem> {
    let sku = valid_sku(sku)?;
    if !(1..=1_000_000_000).contains(&wish.quantity) {
        return Err(Problem::invalid("quantity", "must be 1 to 1,000,000,000"));
    }
    let once = Once::new(format!("/items/{sku}/deliveries"), &key, &wish);
    let delivery = Delivery { delivery_id: Uuid::now_v7(), sku, quantity: wish.quantity };
    let decide = |delivery: &Delivery, warehouse: &mut Warehouse, at| {
        saga::take_in(delivery, warehouse, at)?;
        let item = warehouse.item(&delivery.sku).ok_or_else(Problem::internal)?;
        Ok(Reply::created(place_of(&delivery.sku), item))
    };
    api.commands.run(delivery, Some(once), decide).await
}

async fn show_reservation(
    State(api): State<Api>,
    Path(order_id): Path<Uuid>,
) -> Result<Answer<Reservation>, Problem> {
    let reservation = sqlx::query_as("select * from reservations where order_id = $1")
        .bind(order_id)
        .fetch_optional(&api.db)
        .await?;
    reservation.map(Answer).ok_or_else(|| Problem::not_found("stock has not heard of this order"))
}

fn valid_sku(sku: String) -> Result<String, Problem> {
    match (1..=64).contains(&sku.chars().count()) && !sku.chars().any(char::is_control) {
        true => Ok(sku),
        false => Err(Problem::invalid(
            "sku",
            "must have 1 to 64 characters, none of them a control character",
        )),
    }
}

/// An article's place as a URI says it: a SKU may hold anything, a slash or a space for instance.
fn place_of(sku: &str) -> String {
    let mut place = String::from("/items/");
    for byte in sku.bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' => place.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => place.push(byte.into()),
            _ => place.push_str(&format!("%{byte:02X}")),
        }
    }
    place
}

fn no_such_item() -> Problem {
    Problem::not_found("there is no such item")
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Problem {
        match refusal {
            Refusal::NoSuchItem => no_such_item(),
            Refusal::TooMuch => {
                Problem::invalid("quantity", "is more than can be counted of one item")
            }
        }
    }
}

#[derive(Serialize, sqlx::FromRow)]
struct Books {
    delivered: i64,
    available: i64,
    reserved: i64,
    balanced: bool,
    /// With dead letters that were discarded.
    #[sqlx(skip)]
    written_off: Vec<WrittenOff>,
}

/// What came in is there or reserved.
pub fn books(db: PgPool) -> Router {
    let books = async |State(db): State<PgPool>| -> Result<Answer<Books>, Problem> {
        let mut books: Books = sqlx::query_as(
            "select delivered, available, reserved, delivered = available + reserved as balanced
             from (select coalesce(sum(delivered), 0)::bigint as delivered,
                          coalesce(sum(available), 0)::bigint as available,
                          coalesce(sum(reserved), 0)::bigint as reserved
                   from items) as sums",
        )
        .fetch_one(&db)
        .await?;
        books.written_off = loss::written_off(&db).await?;
        Ok(Answer(books))
    };
    Router::new().route("/books", get(books)).with_state(db)
}
