//! The aggregate: orders that were confirmed.

use chassis::{Loads, Table, UnitOfWork, WriteBatch};
use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use events::orders::OrderConfirmed;
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

/// An order that was confirmed. It never changes.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, ToSchema)]
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

/// The rows of one batch.
#[derive(Default)]
pub struct Orders {
    confirmed: Table<Uuid, ConfirmedOrder>,
}

impl Orders {
    /// What is known of an order, if anything.
    pub fn order(&self, order_id: Uuid) -> Option<&ConfirmedOrder> {
        self.confirmed.get(&order_id)
    }

    /// Notes an order.
    ///
    /// # Panics
    /// If it is there: `save` has no update, so that what changed would be lost without a word.
    pub fn put_order(&mut self, order: ConfirmedOrder) {
        assert!(self.order(order.order_id).is_none(), "what was confirmed never changes");
        self.confirmed.put(order.order_id, order);
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
        let confirmed = sqlx::query_as(
            "select order_id, customer_id, lines, total_cents, currency, confirmed_at
             from confirmed_orders where order_id = any($1) order by order_id for update",
        )
        .bind(Vec::from_iter(keys.iter().copied()))
        .fetch_all(tx)
        .await?;
        Ok(Orders {
            confirmed: Table::from_rows(keys, confirmed, |order: &ConfirmedOrder| order.order_id),
        })
    }

    fn save(&self, batch: &mut WriteBatch<'_>) {
        let orders = self.confirmed.new_rows();
        if orders.is_empty() {
            return;
        }
        batch
            .statement(
                "insert into confirmed_orders
                 (order_id, customer_id, lines, total_cents, currency, confirmed_at)
             select unnest($1::uuid[]), unnest($2::uuid[]), unnest($3::jsonb[]),
                    unnest($4::bigint[]), unnest($5::text[]), unnest($6::timestamptz[])",
            )
            .bind(orders.iter().map(|o| o.order_id).collect::<Vec<_>>())
            .bind(orders.iter().map(|o| o.customer_id).collect::<Vec<_>>())
            .bind(orders.iter().map(|o| &o.lines).collect::<Vec<_>>())
            .bind(orders.iter().map(|o| o.total_cents).collect::<Vec<_>>())
            .bind(orders.iter().map(|o| o.currency.as_str()).collect::<Vec<_>>())
            .bind(orders.iter().map(|o| o.confirmed_at).collect::<Vec<_>>());
    }
}
