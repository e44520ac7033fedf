//! The rows that the checker reads from the services' databases. Columns are named as in the services' migrations: a column that is renamed there has to be
//! renamed here as well.

use chrono::{DateTime, Utc};
use events::participants::participants;
use serde_json::Value;
use sqlx::postgres::PgRow;
use sqlx::{FromRow, Row};
use uuid::Uuid;

use crate::client::order::{Legs, LineRequest, OrderLine};

/// A row of `orders`.
#[derive(Clone, Debug, FromRow)]
pub struct OrderRow {
    pub order_id: Uuid,
    pub customer_id: Uuid,
    pub status: String,
    pub reason: Option<String>,
    #[sqlx(flatten)]
    pub legs: Legs,
    pub total_cents: i64,
    pub currency: String,
    #[sqlx(json)]
    pub lines: Vec<OrderLine>,
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

/// Each leg has a column. One that the order does not ask is null.
impl FromRow<'_, PgRow> for Legs {
    fn from_row(row: &PgRow) -> sqlx::Result<Legs> {
        let mut legs = Legs::default();
        for service in participants().map(|it| it.service) {
            legs.0.extend(row.try_get::<Option<String>, _>(service)?.map(|state| (service, state)));
        }
        Ok(legs)
    }
}

/// The tables of the participants: service, table, key and the columns that the change log has, as text.
///
/// One table of each has its part of every order. Its columns are `order_id`, `state`, `response_event_id` (the yes or
/// no), `created_at`, `compensation_event_id` (the undoing), `updated_at` and the fields of its events.
pub const TABLES: &[(&str, &str, &str, &str)] = &[
    ("payment", "payments", "order_id", "state, customer_id::text, amount_cents::text"),
    ("payment", "accounts", "customer_id", "balance_cents::text, taken_cents::text"),
    ("stock", "reservations", "order_id", "state, lines::text"),
    ("stock", "items", "sku", "available::text, reserved::text"),
];

/// The table of a participant's parts.
pub fn part_table(service: &str) -> &'static str {
    let mut tables = TABLES.iter().filter(|(of, _, key, _)| (*of, *key) == (service, "order_id"));
    tables.next().expect("TABLES has the parts of every participant").1
}

/// The part of a participant: its own row of the order. Each has an id and a state.
#[derive(Clone, Debug, Default, FromRow)]
pub struct PartRow {
    pub order_id: Uuid,
    pub state: String,
    /// Payment's, as the next two.
    #[sqlx(default)]
    pub customer_id: Option<Uuid>,
    #[sqlx(default)]
    pub amount_cents: i64,
    #[sqlx(default)]
    pub currency: Option<String>,
    /// Stock's.
    #[sqlx(json, default)]
    pub lines: Vec<LineRequest>,
}

/// A row of `history`.
#[derive(Clone, Debug, FromRow)]
pub struct HistoryRow {
    pub order_id: Uuid,
    pub event_id: Uuid,
    pub position: i64,
    pub event: String,
    pub detail: Value,
    pub occurred_at: DateTime<Utc>,
}
