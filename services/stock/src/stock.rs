//! The aggregate: items, and how much of them is reserved for which order.

use std::collections::BTreeSet;

use chassis::{Loader, Loads, PublishedEvent, Record, Republish, Table, UnitOfWork, WriteBatch};
use chrono::{DateTime, Utc};
use events::orders::{OrderCancelled, OrderCreated, OrderLine};
use events::stock::{
    RejectReason, ReleasedLine, ReservedLine, StockItem, StockRejected, StockReleased,
    StockReserved,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

/// Every character but the unreserved ones of a URI (RFC 3986).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

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

/// What stock did for an order, and what it answered. The answer never changes. It can be undone once.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "reservations", key = "order_id")]
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

/// The state of a reservation. Only what was reserved changes its state: it is released if its order is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum State {
    /// Every line is reserved.
    Reserved,
    /// There were too few units of an item, so nothing was reserved.
    Rejected,
    /// Every line was reserved, and is available again.
    Released,
    /// The cancellation arrived before the order, so nothing was and nothing will be reserved.
    Void,
}

/// The events of items and reservations are made of their rows, when they are published and when they are republished:
/// so both are equal.
impl Item {
    /// Its path in the API. A SKU may contain a slash or a space, for instance.
    pub fn location(&self) -> String {
        format!("/items/{}", utf8_percent_encode(&self.sku, ESCAPED))
    }

    /// `stock.items`
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
    type Events = StockItem;

    fn published_events(&self) -> Vec<PublishedEvent> {
        vec![PublishedEvent::new(self.event_id, self.changed_at, &self.to_event())]
    }
}

impl Reservation {
    /// `stock.reserved`
    pub fn reserved(&self) -> StockReserved {
        let line = |line: &Line| ReservedLine { sku: line.sku.clone(), quantity: line.quantity };
        let lines = self.lines.iter().map(line).collect();
        StockReserved { order_id: self.order_id, lines, occurred_at: self.created_at }
    }

    /// `stock.rejected`
    pub fn rejected(&self, shortfall: &Shortfall) -> StockRejected {
        let Shortfall { reason, sku, requested, available } = shortfall.clone();
        let (order_id, occurred_at) = (self.order_id, self.created_at);
        StockRejected { order_id, reason, sku, requested, available, occurred_at }
    }

    /// `stock.released`, without lines if nothing had been reserved.
    pub fn released(&self) -> StockReleased {
        let line = |line: &Line| ReleasedLine { sku: line.sku.clone(), quantity: line.quantity };
        let lines = self.lines.iter().map(line).collect();
        StockReleased { order_id: self.order_id, lines, occurred_at: self.updated_at }
    }
}

impl From<&OrderLine> for Line {
    fn from(OrderLine { sku, quantity, .. }: &OrderLine) -> Line {
        Line { sku: sku.clone(), quantity: *quantity }
    }
}

impl Republish for Reservation {
    type Events = (StockReserved, StockRejected, StockReleased);

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

/// The command that creates an item, or changes its name and price.
#[derive(Clone, Debug)]
pub struct PutItem {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
    pub currency: String,
}

/// The command that receives a delivery of an item.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Delivery {
    pub delivery_id: Uuid,
    pub sku: String,
    pub quantity: i64,
}

/// A row of the deliveries.
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

    /// Adds or replaces an item.
    pub fn put_item(&mut self, item: Item) {
        self.items.put(item);
    }

    /// What stock did for an order, if anything.
    pub fn reservation(&self, order_id: Uuid) -> Option<&Reservation> {
        self.reservations.get(&order_id)
    }

    /// Adds or replaces what stock did for an order.
    pub fn put_reservation(&mut self, reservation: Reservation) {
        self.reservations.put(reservation);
    }

    /// Moves units of an item from available to reserved.
    pub fn reserve(&mut self, sku: &str, quantity: i32) {
        let item = self.loaded_item(sku);
        item.available -= i64::from(quantity);
        item.reserved += i64::from(quantity);
    }

    /// Moves units back to available.
    pub fn release(&mut self, sku: &str, quantity: i32) {
        self.reserve(sku, -quantity);
    }

    /// Adds a delivery, and its units to the item. Returns the item.
    pub fn add_delivery(&mut self, delivery: &Delivery, now: DateTime<Utc>) -> &Item {
        let Delivery { delivery_id, sku, quantity } = delivery.clone();
        let row = DeliveryRow { delivery_id, sku, quantity, created_at: now };
        self.deliveries.push(row);
        let item = self.loaded_item(&delivery.sku);
        item.delivered += quantity;
        item.available += quantity;
        item
    }

    /// An item whose units change. A mistake in `load` must not lose units silently.
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

    async fn load(loader: &mut Loader<'_>, mut keys: Keys) -> sqlx::Result<Warehouse> {
        let reservations = loader.lock::<Reservation>(keys.orders).await?;
        // A cancellation names no items; the reservation does.
        let lines = reservations.iter().flat_map(|reservation| reservation.lines.iter());
        keys.skus.extend(lines.map(|line| line.sku.clone()));
        let items = loader.lock(keys.skus).await?;
        Ok(Warehouse { items, reservations, deliveries: Vec::new() })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.items).save(&self.reservations).insert_all(&self.deliveries);
    }
}
