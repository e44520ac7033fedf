//! The aggregate: items, and what is set aside of them for which order.

use chassis::{Loads, PublishedEvent, Record, Republish, Table, UnitOfWork, WriteBatch};
use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use events::orders::{OrderCancelled, OrderCreated};
use events::stock::{
    ITEMS, REJECTED, RELEASED, RESERVED, RejectReason, ReleasedLine, ReservedLine, StockItem,
    StockRejected, StockReleased, StockReserved,
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

/// An item.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "items", key = "sku")]
pub struct Item {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
    pub currency: String,
    pub version: i64,
    pub delivered: i64,
    pub available: i64,
    pub reserved: i64,
    #[serde(skip)]
    pub event_id: Uuid,
    #[serde(skip)]
    pub changed_at: DateTime<Utc>,
}

/// What stock did for an order, and what it said.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "reservations", key = "order_id")]
// The answer stays; it can be undone once.
pub struct Reservation {
    pub order_id: Uuid,
    pub state: State,
    #[record(immutable)]
    #[schema(value_type = Vec<Line>)]
    pub lines: Json<Vec<Line>>,
    #[record(immutable)]
    #[serde(skip)]
    pub shortfall: Option<Json<Shortfall>>,
    #[record(immutable)]
    #[schema(required)]
    pub reason: Option<String>,
    #[record(immutable)]
    #[serde(skip)]
    pub response_event_id: Option<Uuid>,
    #[serde(skip)]
    pub compensation_event_id: Option<Uuid>,
    #[record(immutable)]
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// An item of a reservation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Line {
    pub sku: String,
    pub quantity: i32,
}

/// Why a line of an order can't be supplied.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shortfall {
    pub reason: RejectReason,
    pub sku: String,
    pub requested: i32,
    pub available: i64,
}

/// Where a reservation stands. Only what was reserved is ever left again, when it is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum State {
    /// Every line is set aside.
    Reserved,
    /// Something fell short; nothing was set aside.
    Rejected,
    /// It was set aside and is back.
    Released,
    /// The cancellation came before the order: a tombstone.
    Void,
}

/// What a row says is what its events said: they are made from it, the first time and every time.
impl Item {
    pub fn to_event(&self) -> StockItem {
        StockItem {
            sku: self.sku.clone(),
            name: self.name.clone(),
            price_cents: self.price_cents,
            currency: self.currency.clone(),
            version: self.version,
            occurred_at: self.changed_at,
        }
    }
}

impl Republish for Item {
    fn topic_names() -> Vec<&'static str> {
        vec![ITEMS.name]
    }

    fn published_events(&self) -> Vec<PublishedEvent> {
        vec![PublishedEvent::new(self.event_id, self.changed_at, &self.to_event())]
    }
}

impl Reservation {
    pub fn reserved(&self) -> StockReserved {
        let lines = self.lines.iter();
        let lines = lines.map(|l| ReservedLine { sku: l.sku.clone(), quantity: l.quantity });
        let (order_id, occurred_at) = (self.order_id, self.created_at);
        StockReserved { order_id, lines: lines.collect(), occurred_at }
    }

    pub fn rejected(&self, shortfall: &Shortfall) -> StockRejected {
        let Shortfall { reason, sku, requested, available } = shortfall.clone();
        let (order_id, occurred_at) = (self.order_id, self.created_at);
        StockRejected { order_id, reason, sku, requested, available, occurred_at }
    }

    /// Of nothing where nothing had been set aside.
    pub fn released(&self) -> StockReleased {
        let lines = self.lines.iter();
        let lines = lines.map(|l| ReleasedLine { sku: l.sku.clone(), quantity: l.quantity });
        let (order_id, occurred_at) = (self.order_id, self.updated_at);
        StockReleased { order_id, lines: lines.collect(), occurred_at }
    }
}

impl Republish for Reservation {
    fn topic_names() -> Vec<&'static str> {
        vec![RESERVED.name, REJECTED.name, RELEASED.name]
    }

    fn published_events(&self) -> Vec<PublishedEvent> {
        let response = self.response_event_id.map(|event_id| match &self.shortfall {
            Some(short) => PublishedEvent::new(event_id, self.created_at, &self.rejected(short)),
            None => PublishedEvent::new(event_id, self.created_at, &self.reserved()),
        });
        let compensation = self
            .compensation_event_id
            .map(|event_id| PublishedEvent::new(event_id, self.updated_at, &self.released()));
        response.into_iter().chain(compensation).collect()
    }
}

/// An item as it is to be from now on.
#[derive(Clone, Debug)]
pub struct PutItem {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
    pub currency: String,
}

/// More of an item arrived.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delivery {
    pub delivery_id: Uuid,
    pub sku: String,
    pub quantity: i64,
}

/// A delivery as its table has it.
#[derive(Record)]
#[record(table = "deliveries", key = "delivery_id")]
struct DeliveryRow {
    delivery_id: Uuid,
    sku: String,
    quantity: i64,
    created_at: DateTime<Utc>,
}

/// The rows of one batch.
#[derive(Default)]
pub struct Warehouse {
    items: Table<Item>,
    reservations: Table<Reservation>,
    deliveries: Vec<DeliveryRow>,
}

/// Which rows a batch touches.
#[derive(Default)]
pub struct Keys {
    orders: BTreeSet<Uuid>,
    skus: BTreeSet<String>,
}

impl Warehouse {
    /// An item, if there is one.
    pub fn item(&self, sku: &str) -> Option<&Item> {
        self.items.get(sku)
    }

    /// Adds an item, or replaces what is known of one.
    pub fn put_item(&mut self, item: Item) {
        self.items.put(item);
    }

    /// What was done for an order, if anything.
    pub fn reservation(&self, order_id: Uuid) -> Option<&Reservation> {
        self.reservations.get(&order_id)
    }

    /// Notes what was done for an order.
    pub fn put_reservation(&mut self, reservation: Reservation) {
        self.reservations.put(reservation);
    }

    /// Moves units of an item from available to reserved.
    pub fn reserve(&mut self, sku: &str, quantity: i32) {
        let item = self.loaded_item(sku);
        item.available -= i64::from(quantity);
        item.reserved += i64::from(quantity);
    }

    /// Moves them back.
    pub fn release(&mut self, sku: &str, quantity: i32) {
        self.reserve(sku, -quantity);
    }

    /// More of an item arrived.
    pub fn add_delivery(&mut self, delivery: &Delivery, now: DateTime<Utc>) {
        let item = self.loaded_item(&delivery.sku);
        item.delivered += delivery.quantity;
        item.available += delivery.quantity;
        let Delivery { delivery_id, sku, quantity } = delivery.clone();
        self.deliveries.push(DeliveryRow { delivery_id, sku, quantity, created_at: now });
    }

    /// An item whose goods are to be moved. One that `load` forgot must not be moved in silence.
    fn loaded_item(&mut self, sku: &str) -> &mut Item {
        self.items.get_mut(sku).unwrap_or_else(|| panic!("item {sku} is not among the rows"))
    }
}

impl Loads<OrderCreated> for Warehouse {
    fn keys(order: &OrderCreated, keys: &mut Keys) {
        keys.orders.insert(order.order_id);
        keys.skus.extend(order.lines.iter().map(|line| line.sku.clone()));
    }
}

impl Loads<OrderCancelled> for Warehouse {
    fn keys(order: &OrderCancelled, keys: &mut Keys) {
        keys.orders.insert(order.order_id);
    }
}

impl Loads<PutItem> for Warehouse {
    fn keys(put: &PutItem, keys: &mut Keys) {
        keys.skus.insert(put.sku.clone());
    }
}

impl Loads<Delivery> for Warehouse {
    fn keys(delivery: &Delivery, keys: &mut Keys) {
        keys.skus.insert(delivery.sku.clone());
    }
}

impl UnitOfWork for Warehouse {
    type Keys = Keys;

    async fn load(tx: &mut PgConnection, mut keys: Keys) -> sqlx::Result<Warehouse> {
        let reservations = Table::<Reservation>::lock(tx, keys.orders).await?;
        // A cancellation names no items; what is put back stands in the reservation.
        let lines = reservations.iter().flat_map(|reservation| reservation.lines.iter());
        keys.skus.extend(lines.map(|line| line.sku.clone()));
        let items = Table::lock(tx, keys.skus).await?;
        Ok(Warehouse { items, reservations, deliveries: Vec::new() })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.items).save(&self.reservations).insert_all(&self.deliveries);
    }
}
