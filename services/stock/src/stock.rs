//! The aggregate: items, and what is set aside of them for which order.

use std::collections::BTreeSet;

use chassis::announce::{Announce, Published};
use chassis::rows::{Rows, Table, Touches};
use chassis::writes::Writes;
use chrono::{DateTime, Utc};
use events::orders::{OrderCancelled, OrderCreated};
use events::stock::{
    RejectReason, ReleasedLine, ReservedLine, StockItem, StockRejected, StockReleased,
    StockReserved,
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

/// An item.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, ToSchema)]
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
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, ToSchema)]
pub struct Reservation {
    pub order_id: Uuid,
    pub state: State,
    #[schema(value_type = Vec<Line>)]
    pub lines: Json<Vec<Line>>,
    #[serde(skip)]
    pub shortfall: Option<Json<Shortfall>>,
    #[schema(required)]
    pub reason: Option<String>,
    #[serde(skip)]
    pub answer_event_id: Option<Uuid>,
    #[serde(skip)]
    pub undo_event_id: Option<Uuid>,
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
    pub fn announced(&self) -> StockItem {
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

impl Announce for Item {
    type Key = String;
    const TABLE: (&'static str, &'static str) = ("items", "sku");

    fn key(&self) -> String {
        self.sku.clone()
    }

    fn published(&self) -> Vec<Published> {
        vec![Published::new(self.event_id, self.changed_at, &self.announced())]
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

impl Announce for Reservation {
    type Key = Uuid;
    const TABLE: (&'static str, &'static str) = ("reservations", "order_id");

    fn key(&self) -> Uuid {
        self.order_id
    }

    fn published(&self) -> Vec<Published> {
        let answer = self.answer_event_id.map(|event_id| match &self.shortfall {
            Some(short) => Published::new(event_id, self.created_at, &self.rejected(short)),
            None => Published::new(event_id, self.created_at, &self.reserved()),
        });
        let undo = self
            .undo_event_id
            .map(|event_id| Published::new(event_id, self.updated_at, &self.released()));
        answer.into_iter().chain(undo).collect()
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

/// The rows of one batch.
#[derive(Default)]
pub struct Warehouse {
    items: Table<String, Item>,
    reservations: Table<Uuid, Reservation>,
    deliveries: Vec<(Delivery, DateTime<Utc>)>,
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
        self.items.put(item.sku.clone(), item);
    }

    /// What was done for an order, if anything.
    pub fn reservation(&self, order_id: Uuid) -> Option<&Reservation> {
        self.reservations.get(&order_id)
    }

    /// Notes what was done for an order.
    pub fn put_reservation(&mut self, reservation: Reservation) {
        self.reservations.put(reservation.order_id, reservation);
    }

    /// Moves so many of an item from available to reserved; back where negative.
    pub fn set_aside(&mut self, sku: &str, quantity: i32) {
        let item = self.loaded(sku);
        item.available -= i64::from(quantity);
        item.reserved += i64::from(quantity);
    }

    /// More of an item arrived.
    pub fn deliver(&mut self, delivery: &Delivery, now: DateTime<Utc>) {
        let item = self.loaded(&delivery.sku);
        item.delivered += delivery.quantity;
        item.available += delivery.quantity;
        self.deliveries.push((delivery.clone(), now));
    }

    /// An item whose goods are to be moved. One that `load` forgot must not be moved in silence.
    fn loaded(&mut self, sku: &str) -> &mut Item {
        self.items.change(sku).unwrap_or_else(|| panic!("item {sku} is not among the rows"))
    }
}

impl Touches<OrderCreated> for Warehouse {
    fn touch(order: &OrderCreated, keys: &mut Keys) {
        keys.orders.insert(order.order_id);
        keys.skus.extend(order.lines.iter().map(|line| line.sku.clone()));
    }
}

impl Touches<OrderCancelled> for Warehouse {
    fn touch(order: &OrderCancelled, keys: &mut Keys) {
        keys.orders.insert(order.order_id);
    }
}

impl Touches<PutItem> for Warehouse {
    fn touch(put: &PutItem, keys: &mut Keys) {
        keys.skus.insert(put.sku.clone());
    }
}

impl Touches<Delivery> for Warehouse {
    fn touch(delivery: &Delivery, keys: &mut Keys) {
        keys.skus.insert(delivery.sku.clone());
    }
}

impl Rows for Warehouse {
    type Keys = Keys;

    async fn load(tx: &mut PgConnection, mut keys: Keys) -> sqlx::Result<Warehouse> {
        let (mut reservations, mut items) = (Vec::<Reservation>::new(), Vec::new());
        if !keys.orders.is_empty() {
            reservations = sqlx::query_as(
                "select order_id, state, lines, shortfall, reason, answer_event_id, undo_event_id,
                        created_at, updated_at
                 from reservations where order_id = any($1) order by order_id for update",
            )
            .bind(Vec::from_iter(keys.orders.iter().copied()))
            .fetch_all(&mut *tx)
            .await?;
            // A cancellation names no items; what is put back stands in the reservation.
            let lines = reservations.iter().flat_map(|reservation| reservation.lines.iter());
            keys.skus.extend(lines.map(|line| line.sku.clone()));
        }
        if !keys.skus.is_empty() {
            items = sqlx::query_as(
                "select sku, name, price_cents, currency, version, delivered, available,
                            reserved, event_id, changed_at
                     from items where sku = any($1) order by sku for update",
            )
            .bind(Vec::from_iter(keys.skus.iter().map(String::as_str)))
            .fetch_all(&mut *tx)
            .await?;
        }
        Ok(Warehouse {
            reservations: Table::read(keys.orders, reservations, |r| r.order_id),
            items: Table::read(keys.skus, items, |item: &Item| item.sku.clone()),
            deliveries: Vec::new(),
        })
    }

    fn save(&self, writes: &mut Writes<'_>) {
        save_items(writes, UPDATE_ITEMS, self.items.updated());
        save_items(writes, INSERT_ITEMS, self.items.inserted());
        update_reservations(writes, self.reservations.updated());
        insert_reservations(writes, self.reservations.inserted());
        insert_deliveries(writes, &self.deliveries);
    }
}

const UPDATE_ITEMS: &str = "
    update items set name = i.name, price_cents = i.price_cents, currency = i.currency,
        version = i.version, delivered = i.delivered, available = i.available,
        reserved = i.reserved, event_id = i.event_id, changed_at = i.changed_at
    from (select unnest($1::text[]) as sku, unnest($2::text[]) as name,
                 unnest($3::bigint[]) as price_cents, unnest($4::text[]) as currency,
                 unnest($5::bigint[]) as version, unnest($6::bigint[]) as delivered,
                 unnest($7::bigint[]) as available, unnest($8::bigint[]) as reserved,
                 unnest($9::uuid[]) as event_id, unnest($10::timestamptz[]) as changed_at) as i
    where items.sku = i.sku";

const INSERT_ITEMS: &str = "
    insert into items
        (sku, name, price_cents, currency, version, delivered, available, reserved, event_id,
         changed_at)
    select unnest($1::text[]), unnest($2::text[]), unnest($3::bigint[]), unnest($4::text[]),
           unnest($5::bigint[]), unnest($6::bigint[]), unnest($7::bigint[]), unnest($8::bigint[]),
           unnest($9::uuid[]), unnest($10::timestamptz[])";

fn save_items(writes: &mut Writes<'_>, statement: &'static str, items: Vec<&Item>) {
    if items.is_empty() {
        return;
    }
    writes
        .add(statement)
        .bind(items.iter().map(|i| i.sku.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.name.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.price_cents).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.currency.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.version).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.delivered).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.available).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.reserved).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.event_id).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.changed_at).collect::<Vec<_>>());
}

/// What was answered stays; it can be undone once.
fn update_reservations(writes: &mut Writes<'_>, reservations: Vec<&Reservation>) {
    if reservations.is_empty() {
        return;
    }
    writes
        .add(
            "update reservations set state = r.state, undo_event_id = r.undo_event_id,
             updated_at = r.updated_at
         from (select unnest($1::uuid[]) as order_id, unnest($2::text[]) as state,
                      unnest($3::uuid[]) as undo_event_id,
                      unnest($4::timestamptz[]) as updated_at) as r
         where reservations.order_id = r.order_id",
        )
        .bind(reservations.iter().map(|r| r.order_id).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.state).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.undo_event_id).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.updated_at).collect::<Vec<_>>());
}

fn insert_reservations(writes: &mut Writes<'_>, reservations: Vec<&Reservation>) {
    if reservations.is_empty() {
        return;
    }
    writes
        .add(
            "insert into reservations
             (order_id, state, lines, shortfall, reason, answer_event_id, undo_event_id,
              created_at, updated_at)
         select unnest($1::uuid[]), unnest($2::text[]), unnest($3::jsonb[]), unnest($4::jsonb[]),
                unnest($5::text[]), unnest($6::uuid[]), unnest($7::uuid[]),
                unnest($8::timestamptz[]), unnest($9::timestamptz[])",
        )
        .bind(reservations.iter().map(|r| r.order_id).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.state).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| &r.lines).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.shortfall.as_ref()).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.reason.as_deref()).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.answer_event_id).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.undo_event_id).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.created_at).collect::<Vec<_>>())
        .bind(reservations.iter().map(|r| r.updated_at).collect::<Vec<_>>());
}

fn insert_deliveries(writes: &mut Writes<'_>, deliveries: &[(Delivery, DateTime<Utc>)]) {
    if deliveries.is_empty() {
        return;
    }
    writes
        .add(
            "insert into deliveries (delivery_id, sku, quantity, created_at)
         select unnest($1::uuid[]), unnest($2::text[]), unnest($3::bigint[]),
                unnest($4::timestamptz[])",
        )
        .bind(deliveries.iter().map(|(d, _)| d.delivery_id).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|(d, _)| d.sku.as_str()).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|(d, _)| d.quantity).collect::<Vec<_>>())
        .bind(deliveries.iter().map(|(_, at)| *at).collect::<Vec<_>>());
}
