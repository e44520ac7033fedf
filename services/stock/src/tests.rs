//! The tests of stock: its rules, then its edges on a real database. What they all speak of is here.

mod rules;
mod edges;
mod paging;
mod announcing;

use chassis::event::At;
use chassis::testing::{self, Bench, Client};
use chrono::DateTime;
use events::orders::{CancelReason, OrderCancelled, OrderCreated, OrderLine};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::stock::Warehouse;
use crate::{api, saga};

const ORDER: Uuid = Uuid::from_u128(7);

fn at(nth: u128) -> At {
    let (event_id, cause) = (Uuid::from_u128(nth << 64 | 1), Some(Uuid::from_u128(nth << 64)));
    At { now: DateTime::from_timestamp(nth as i64, 0).unwrap(), event_id, cause }
}

fn created(order_id: Uuid, lines: &[(&str, i32)]) -> OrderCreated {
    let line = |(sku, quantity): &(&str, i32)| OrderLine {
        sku: sku.to_string(),
        quantity: *quantity,
        unit_price_cents: 150,
    };
    OrderCreated {
        order_id,
        customer_id: Uuid::max(),
        lines: lines.iter().map(line).collect(),
        total_cents: 150,
        currency: "EUR".into(),
        occurred_at: at(0).now,
    }
}

fn cancelled(order_id: Uuid) -> OrderCancelled {
    OrderCancelled { order_id, reason: CancelReason::Customer, occurred_at: at(0).now }
}

async fn bench() -> (Bench<Warehouse>, Client) {
    let bench = Bench::new("stock", sqlx::migrate!()).await;
    let api = api::router(bench.db.clone(), bench.commands.clone(), "EUR".into());
    (bench, Client(api))
}

async fn books(bench: &Bench<Warehouse>) -> Value {
    Client(api::books(bench.db.clone())).get("/books").await.body
}

/// An item with so many of it there.
async fn stocked(client: &Client, sku: &str, quantity: i64) {
    client.put(&format!("/items/{sku}"), json!({"name": sku, "price_cents": 150})).await;
    let wish = json!({"quantity": quantity});
    assert_eq!(
        client.post(&format!("/items/{sku}/deliveries"), Some("first"), wish).await.status,
        201
    );
}
