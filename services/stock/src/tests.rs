//! The tests of stock: its rules, then its edges on a real database. This file has what they share.

mod rules;
mod edges;
mod callers;
mod paging;
mod republishing;
mod statements;

use chassis::{Command, HandlerContext};
use chrono::DateTime;
use events::orders::{CancelReason, OrderCancelled, OrderCreated, OrderLine};
use serde_json::{Value, json};
use testing::{TestClient, TestService};
use uuid::Uuid;

use crate::stock::Warehouse;
use crate::{api, discard, saga};

const ORDER: Uuid = Uuid::from_u128(7);

fn context(nth: u128) -> HandlerContext {
    let (event_id, causation_id) =
        (Uuid::from_u128(nth << 64 | 1), Some(Uuid::from_u128(nth << 64)));
    HandlerContext { now: DateTime::from_timestamp(nth as i64, 0).unwrap(), event_id, causation_id }
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
        also_asks: Vec::new(),
        occurred_at: context(0).now,
    }
}

fn cancelled(order_id: Uuid) -> OrderCancelled {
    OrderCancelled { order_id, reason: CancelReason::Customer, occurred_at: context(0).now }
}

async fn fixture() -> (TestService<Warehouse>, TestClient) {
    let fixture = TestService::new("stock", sqlx::migrate!()).await;
    let api = api::router(fixture.db.clone(), fixture.commands.clone(), "EUR".into());
    (fixture, TestClient::of_api(api))
}

async fn books(fixture: &TestService<Warehouse>) -> Value {
    fixture.books(api::BOOKS).get("/books").await.body
}

/// An item with so many units.
async fn add_stock(client: &TestClient, sku: &str, quantity: i64) {
    client.put(&format!("/items/{sku}"), json!({"name": sku, "price_cents": 150})).await;
    let request = json!({"quantity": quantity});
    assert_eq!(
        client.post(&format!("/items/{sku}/deliveries"), Some("first"), request).await.status,
        201
    );
}
