//! The rows that the checker reads from the services' databases, and everything that is known of one
//! order. Columns are named as in the services' migrations: a column that is renamed there has to be
//! renamed here as well.

use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::Value;
use uuid::Uuid;

use crate::checker::expected_records::ExpectedRecord;
use crate::checker::record::RecordSummary;
use crate::client::order::{LEGS, Leg};

/// A row of `orders`.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct OrderRow {
    pub order_id: Uuid,
    pub customer_id: Uuid,
    pub status: String,
    pub reason: Option<String>,
    pub payment: String,
    pub stock: String,
    pub total_cents: i64,
    pub currency: String,
    #[sqlx(json)]
    pub lines: Vec<OrderLineRow>,
    pub created_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub created_event_id: Uuid,
    pub ended_event_id: Option<Uuid>,
}

impl OrderRow {
    pub fn cancelled_event_id(&self) -> Option<Uuid> {
        self.ended_event_id.filter(|_| self.status == "cancelled")
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OrderLineRow {
    pub sku: String,
    pub quantity: i32,
    pub unit_price_cents: i64,
}

/// A row of `payments`.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct PaymentRow {
    pub order_id: Uuid,
    pub state: String,
    pub customer_id: Option<Uuid>,
    pub amount_cents: i64,
    pub currency: Option<String>,
}

/// A row of `reservations`.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct ReservationRow {
    pub order_id: Uuid,
    pub state: String,
    #[sqlx(json)]
    pub lines: Vec<ReservationLine>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct ReservationLine {
    pub sku: String,
    pub quantity: i32,
}

/// A row of `history`.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct HistoryRow {
    pub order_id: Uuid,
    pub event_id: Uuid,
    pub position: i64,
    pub event: String,
    pub detail: Value,
    pub occurred_at: DateTime<Utc>,
}

/// All rows and records of one order.
#[derive(Clone, Default)]
pub struct OrderCase {
    pub order_id: Uuid,
    pub order: Option<OrderRow>,
    pub payment: Option<PaymentRow>,
    pub reservation: Option<ReservationRow>,
    pub history: Vec<HistoryRow>,
    /// The events that the rows record as published.
    pub expected: Vec<ExpectedRecord>,
    pub records: Vec<RecordSummary>,
}

impl OrderCase {
    /// Each leg, with its state according to the order and according to its own service.
    pub fn legs<'a>(&'a self, order: &'a OrderRow) -> [(Leg, &'a str, &'a str); 2] {
        let payment = self.payment.as_ref().map(|row| &row.state);
        let stock = self.reservation.as_ref().map(|row| &row.state);
        let state = |own: Option<&'a String>| own.map_or("waiting", String::as_str);
        let [first, second] = LEGS;
        [(first, &order.payment, state(payment)), (second, &order.stock, state(stock))]
    }
}
