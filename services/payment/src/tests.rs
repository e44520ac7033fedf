//! The tests of payment: its rules, then its edges on a real database. This file has what they share.

mod rules;
mod edges;
mod callers;
mod republishing;
mod statements;

use chassis::{Command, HandlerContext};
use chrono::DateTime;
use events::orders::{CancelReason, OrderCancelled, OrderCreated, OrderLine};
use serde_json::{Value, json};
use testing::{TestClient, TestService};
use uuid::Uuid;

use crate::payment::Ledger;
use crate::{api, discard, saga};

const ORDER: Uuid = Uuid::from_u128(7);
const CUSTOMER: Uuid = Uuid::from_u128(8);

fn context(nth: u128) -> HandlerContext {
    let (event_id, causation_id) =
        (Uuid::from_u128(nth << 64 | 1), Some(Uuid::from_u128(nth << 64)));
    HandlerContext { now: DateTime::from_timestamp(nth as i64, 0).unwrap(), event_id, causation_id }
}

fn euros() -> String {
    "EUR".into()
}

fn created(order_id: Uuid, customer_id: Uuid, total_cents: i64, currency: &str) -> OrderCreated {
    OrderCreated {
        order_id,
        customer_id,
        lines: vec![OrderLine { sku: "pen".into(), quantity: 1, unit_price_cents: total_cents }],
        total_cents,
        currency: currency.into(),
        also_asks: Vec::new(),
        occurred_at: context(0).now,
    }
}

fn cancelled(order_id: Uuid) -> OrderCancelled {
    OrderCancelled { order_id, reason: CancelReason::Customer, occurred_at: context(0).now }
}

async fn fixture() -> (TestService<Ledger>, TestClient) {
    let fixture = TestService::new("payment", sqlx::migrate!()).await;
    let api = api::router(fixture.db.clone(), fixture.commands.clone(), "EUR".into());
    (fixture, TestClient::of_api(api))
}

async fn books(fixture: &TestService<Ledger>) -> Value {
    fixture.books(api::BOOKS).get("/books").await.body
}

async fn post_deposit(client: &TestClient, customer_id: Uuid, amount_cents: i64, key: &str) {
    let path = format!("/accounts/{customer_id}/deposits");
    let answer = client.post(&path, Some(key), json!({"amount_cents": amount_cents})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}
