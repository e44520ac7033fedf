//! The tests of payment: its rules, then its edges on a real database. What they all speak of is
//! here.

mod rules;
mod edges;
mod announcing;

use chassis::event::At;
use chassis::testing::{self, Bench, Client};
use chrono::DateTime;
use events::orders::{CancelReason, OrderCancelled, OrderCreated, OrderLine};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::payment::Ledger;
use crate::{api, saga};

const ORDER: Uuid = Uuid::from_u128(7);
const CUSTOMER: Uuid = Uuid::from_u128(8);

fn at(nth: u128) -> At {
    let (event_id, cause) = (Uuid::from_u128(nth << 64 | 1), Some(Uuid::from_u128(nth << 64)));
    At { now: DateTime::from_timestamp(nth as i64, 0).unwrap(), event_id, cause }
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
        occurred_at: at(0).now,
    }
}

fn cancelled(order_id: Uuid) -> OrderCancelled {
    OrderCancelled { order_id, reason: CancelReason::Customer, occurred_at: at(0).now }
}

async fn bench() -> (Bench<Ledger>, Client) {
    let bench = Bench::new("payment", sqlx::migrate!()).await;
    let api = api::router(bench.db.clone(), bench.commands.clone(), "EUR".into());
    (bench, Client(api))
}

async fn books(bench: &Bench<Ledger>) -> Value {
    Client(api::books(bench.db.clone())).get("/books").await.body
}

async fn deposited(client: &Client, customer_id: Uuid, amount_cents: i64, key: &str) {
    let place = format!("/accounts/{customer_id}/deposits");
    let answer = client.post(&place, Some(key), json!({"amount_cents": amount_cents})).await;
    assert_eq!(answer.status, 201, "{answer:?}");
}
