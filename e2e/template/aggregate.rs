//! The aggregate: orders that were confirmed.

use std::collections::BTreeSet;

use chassis::{Loads, Record, Table, UnitOfWork, WriteBatch};
use chrono::{DateTime, Utc};
use events::orders::{ConfirmedLine, OrderConfirmed};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

/// An order that was confirmed. It never changes.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "confirmed_orders", key = "order_id", immutable)]
pub struct ConfirmedOrder {
    pub order_id: Uuid,
    pub customer_id: Uuid,
    #[schema(value_type = Vec<Line>)]
    pub lines: Json<Vec<Line>>,
    pub total_cents: i64,
    pub currency: String,
    pub confirmed_at: DateTime<Utc>,
}

/// An item of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Line {
    pub sku: String,
    pub quantity: i32,
    pub unit_price_cents: i64,
}

impl From<&ConfirmedLine> for Line {
    fn from(ConfirmedLine { sku, quantity, unit_price_cents }: &ConfirmedLine) -> Line {
        let (quantity, unit_price_cents) = (*quantity, *unit_price_cents);
        Line { sku: sku.clone(), quantity, unit_price_cents }
    }
}

/// The rows of one batch.
#[derive(Default)]
pub struct Orders {
    confirmed: Table<ConfirmedOrder>,
}

impl Orders {
    /// A confirmed order, if its event was received.
    pub fn order(&self, order_id: Uuid) -> Option<&ConfirmedOrder> {
        self.confirmed.get(&order_id)
    }

    /// Adds a confirmed order.
    pub fn put_order(&mut self, order: ConfirmedOrder) {
        self.confirmed.put(order);
    }
}

impl Loads<OrderConfirmed> for Orders {
    fn keys(order: &OrderConfirmed, keys: &mut BTreeSet<Uuid>) {
        keys.insert(order.order_id);
    }
}

impl UnitOfWork for Orders {
    type Keys = BTreeSet<Uuid>;

    async fn load(tx: &mut PgConnection, keys: BTreeSet<Uuid>) -> sqlx::Result<Orders> {
        Ok(Orders { confirmed: Table::lock(tx, keys).await? })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.confirmed);
    }
}
