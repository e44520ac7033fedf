//! The aggregate: purchases that were confirmed.

use std::collections::BTreeSet;

use chassis::{Loader, Loads, Record, Table, UnitOfWork, WriteBatch};
use chrono::{DateTime, Utc};
use events::purchases::{ConfirmedLine, PurchaseConfirmed};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

/// A purchase that was confirmed. It never changes.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "confirmed_purchases", key = "purchase_id", immutable)]
pub struct ConfirmedPurchase {
    pub purchase_id: Uuid,
    pub customer_id: Uuid,
    #[schema(value_type = Vec<Line>)]
    pub lines: Json<Vec<Line>>,
    pub total_cents: i64,
    pub currency: String,
    pub confirmed_at: DateTime<Utc>,
    pub recorded_at: DateTime<Utc>,
    /// The event that is published about it.
    #[serde(skip)]
    pub event_id: Uuid,
}

/// An item of a purchase.
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
pub struct Purchases {
    confirmed: Table<ConfirmedPurchase>,
}

impl Purchases {
    /// A confirmed purchase, if its event was received.
    pub fn purchase(&self, purchase_id: Uuid) -> Option<&ConfirmedPurchase> {
        self.confirmed.get(&purchase_id)
    }

    /// Adds a confirmed purchase.
    pub fn put_purchase(&mut self, purchase: ConfirmedPurchase) {
        self.confirmed.put(purchase);
    }
}

impl Loads<PurchaseConfirmed> for Purchases {
    fn keys(purchase: &PurchaseConfirmed, keys: &mut BTreeSet<Uuid>) {
        keys.insert(purchase.purchase_id);
    }
}

impl UnitOfWork for Purchases {
    type Keys = BTreeSet<Uuid>;

    async fn load(loader: &mut Loader<'_>, keys: BTreeSet<Uuid>) -> sqlx::Result<Purchases> {
        Ok(Purchases { confirmed: loader.lock(keys).await? })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.confirmed);
    }
}
