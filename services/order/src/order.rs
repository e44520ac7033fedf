//! The aggregate: orders with their two legs and their history, and the items they can name.

use std::collections::{BTreeSet, HashMap};

use chassis::announce::{Announce, Published};
use chassis::event::{At, Event};
use chassis::extract::whole;
use chassis::rows::{Rows, Table, Touches};
use chassis::writes::Writes;
use chrono::{DateTime, Utc};
use events::orders::{
    CancelReason, ConfirmedLine, OrderCancelled, OrderConfirmed, OrderCreated, OrderLine,
};
use events::payments::{PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{StockItem, StockRejected, StockReleased, StockReserved};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, types::Json};
use utoipa::ToSchema;
use uuid::Uuid;

/// An order: the row that decides.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, ToSchema)]
pub struct Order {
    pub order_id: Uuid,
    pub customer_id: Uuid,
    pub status: Status,
    #[schema(required)]
    pub reason: Option<Reason>,
    pub payment: PaymentLeg,
    pub stock: StockLeg,
    pub total_cents: i64,
    pub currency: String,
    #[schema(value_type = Vec<Line>)]
    pub lines: Json<Vec<Line>>,
    pub created_at: DateTime<Utc>,
    #[schema(required)]
    pub ended_at: Option<DateTime<Utc>>,
    #[serde(skip)]
    pub created_event_id: Uuid,
    #[serde(skip)]
    pub ended_event_id: Option<Uuid>,
}

/// One item of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Line {
    pub sku: String,
    pub quantity: i32,
    pub unit_price_cents: i64,
}

/// Leaves `Pending` once, and never again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Status {
    Pending,
    Confirmed,
    Cancelled,
}

/// Why an order was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Reason {
    PaymentDeclined,
    StockRejected,
    Customer,
    Deadline,
}

/// What payment answered. It only climbs: waiting < verified < refunded, waiting < declined,
/// waiting < void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum PaymentLeg {
    Waiting,
    Verified,
    Declined,
    Refunded,
    Void,
}

/// What stock answered. It only climbs: waiting < reserved < released, waiting < rejected,
/// waiting < void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum StockLeg {
    Waiting,
    Reserved,
    Rejected,
    Released,
    Void,
}

/// What the row says is what its events said: they are made from it, the first time and every time.
impl Order {
    pub fn created(&self) -> OrderCreated {
        let lines = self.lines.iter().cloned();
        OrderCreated {
            order_id: self.order_id,
            customer_id: self.customer_id,
            lines: lines
                .map(|Line { sku, quantity, unit_price_cents }| OrderLine {
                    sku,
                    quantity,
                    unit_price_cents,
                })
                .collect(),
            total_cents: self.total_cents,
            currency: self.currency.clone(),
            occurred_at: self.created_at,
        }
    }

    pub fn confirmed(&self, occurred_at: DateTime<Utc>) -> OrderConfirmed {
        let lines = self.lines.iter().cloned();
        OrderConfirmed {
            order_id: self.order_id,
            customer_id: self.customer_id,
            lines: lines
                .map(|Line { sku, quantity, unit_price_cents }| ConfirmedLine {
                    sku,
                    quantity,
                    unit_price_cents,
                })
                .collect(),
            total_cents: self.total_cents,
            currency: self.currency.clone(),
            occurred_at,
        }
    }

    pub fn cancelled(&self, reason: Reason, occurred_at: DateTime<Utc>) -> OrderCancelled {
        let reason = match reason {
            Reason::PaymentDeclined => CancelReason::PaymentDeclined,
            Reason::StockRejected => CancelReason::StockRejected,
            Reason::Customer => CancelReason::Customer,
            Reason::Deadline => CancelReason::Deadline,
        };
        OrderCancelled { order_id: self.order_id, reason, occurred_at }
    }
}

impl Announce for Order {
    type Key = Uuid;
    const TABLE: (&'static str, &'static str) = ("orders", "order_id");

    fn key(&self) -> Uuid {
        self.order_id
    }

    fn published(&self) -> Vec<Published> {
        let mut published =
            vec![Published::new(self.created_event_id, self.created_at, &self.created())];
        if let (Some(event_id), Some(at)) = (self.ended_event_id, self.ended_at) {
            published.push(match self.reason {
                None => Published::new(event_id, at, &self.confirmed(at)),
                Some(reason) => Published::new(event_id, at, &self.cancelled(reason, at)),
            });
        }
        published
    }
}

/// An item, as last heard of.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, ToSchema)]
pub struct Item {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
    pub currency: String,
    pub version: i64,
}

/// What is added to an order's history.
#[derive(Clone, Debug, PartialEq)]
pub struct NewEntry {
    pub order_id: Uuid,
    pub event_id: Uuid,
    pub position: i64,
    pub event: &'static str,
    /// The event as JSON.
    pub detail: String,
    pub occurred_at: DateTime<Utc>,
    pub recorded_at: DateTime<Utc>,
}

/// A customer wants these items.
#[derive(Clone, Debug)]
pub struct PlaceOrder {
    /// Drawn when the wish arrived, so that a repeated try meets its own row.
    pub order_id: Uuid,
    pub customer_id: Uuid,
    pub lines: Vec<Wanted>,
}

/// One item that a customer wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Stands on one line only. In Unicode's normalization form NFKC, without invisible characters and
    /// without blanks other than the space, which is neither first nor last.
    #[schema(min_length = 1, max_length = 64, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    #[schema(examples("deck-lantern"))]
    pub sku: String,
    #[schema(minimum = 1, maximum = 1_000, examples(2))]
    #[serde(deserialize_with = "whole")]
    pub quantity: i32,
}

/// An order is to end: by its customer's wish, or because its time is over.
#[derive(Clone, Debug)]
pub struct CancelOrder {
    pub order_id: Uuid,
    pub reason: Reason,
}

/// An order as its table has it.
#[derive(sqlx::FromRow)]
struct Stored {
    #[sqlx(flatten)]
    order: Order,
    entries: i64,
}

/// The rows of one batch.
#[derive(Default)]
pub struct Orders {
    orders: Table<Uuid, Order>,
    items: Table<String, Item>,
    /// The position of the last entry of each order's history.
    entries: HashMap<Uuid, i64>,
    history: Vec<NewEntry>,
}

/// Which rows a batch touches.
#[derive(Default)]
pub struct Keys {
    orders: BTreeSet<Uuid>,
    skus: BTreeSet<String>,
}

impl Orders {
    /// An order, if there is one.
    pub fn order(&self, order_id: Uuid) -> Option<&Order> {
        self.orders.get(&order_id)
    }

    /// An order, if there is one, to be changed in its place.
    pub fn change_order(&mut self, order_id: Uuid) -> Option<&mut Order> {
        self.orders.change(&order_id)
    }

    /// Adds an order, or replaces what is known of one.
    pub fn put_order(&mut self, order: Order) {
        self.orders.put(order.order_id, order);
    }

    /// An item, if stock announced it.
    pub fn item(&self, sku: &str) -> Option<&Item> {
        self.items.get(sku)
    }

    /// Every item of the batch.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.iter()
    }

    /// Notes what stock announced, unless something newer is known.
    pub fn put_item(&mut self, item: Item) {
        if self.item(&item.sku).is_none_or(|known| known.version < item.version) {
            self.items.put(item.sku.clone(), item);
        }
    }

    /// Adds the event that is being handled to its order's history.
    pub fn heard<E: Event>(
        &mut self,
        event: &E,
        order_id: Uuid,
        occurred_at: DateTime<Utc>,
        at: At,
    ) {
        if let Some(event_id) = at.cause {
            self.record(event, order_id, event_id, occurred_at, at);
        }
    }

    /// Adds the event that is being published to its order's history.
    pub fn said<E: Event>(&mut self, event: &E, order_id: Uuid, at: At) {
        self.record(event, order_id, at.event_id, at.now, at);
    }

    fn record<E: Event>(
        &mut self,
        event: &E,
        order_id: Uuid,
        event_id: Uuid,
        occurred_at: DateTime<Utc>,
        At { now: recorded_at, .. }: At,
    ) {
        // Counted in the order's own row, under its lock: so that has to be written.
        self.orders.change(&order_id);
        let last = self.entries.entry(order_id).or_default();
        *last += 1;
        let position = *last;
        let detail = serde_json::to_string(event).expect("events are plain JSON");
        let event = E::topic().name;
        self.history.push(NewEntry {
            order_id,
            event_id,
            position,
            event,
            detail,
            occurred_at,
            recorded_at,
        });
    }

    /// What was added to histories.
    #[cfg(test)]
    pub fn history(&self) -> &[NewEntry] {
        &self.history
    }
}

impl Touches<PlaceOrder> for Orders {
    fn touch(place: &PlaceOrder, keys: &mut Keys) {
        keys.orders.insert(place.order_id);
        keys.skus.extend(place.lines.iter().map(|line| line.sku.clone()));
    }
}

impl Touches<StockItem> for Orders {
    fn touch(item: &StockItem, keys: &mut Keys) {
        keys.skus.insert(item.sku.clone());
    }
}

macro_rules! touches_its_order {
    ($($event:ty),*) => {$(
        impl Touches<$event> for Orders {
            fn touch(event: &$event, keys: &mut Keys) {
                keys.orders.insert(event.order_id);
            }
        }
    )*};
}

touches_its_order!(
    CancelOrder,
    PaymentVerified,
    PaymentDeclined,
    PaymentRefunded,
    StockReserved,
    StockRejected,
    StockReleased
);

impl Rows for Orders {
    type Keys = Keys;

    async fn load(tx: &mut PgConnection, keys: Keys) -> sqlx::Result<Orders> {
        let (mut orders, mut items) = (Vec::<Stored>::new(), Vec::new());
        if !keys.orders.is_empty() {
            orders = sqlx::query_as(
                "select order_id, customer_id, status, reason, payment, stock, total_cents,
                        currency, lines, created_at, ended_at, created_event_id, ended_event_id,
                        entries
                 from orders where order_id = any($1) order by order_id for update",
            )
            .bind(Vec::from_iter(keys.orders.iter().copied()))
            .fetch_all(&mut *tx)
            .await?;
        }
        if !keys.skus.is_empty() {
            // Not locked: an order takes the price that was known when it was placed.
            items = sqlx::query_as(
                "select sku, name, price_cents, currency, version
                 from items where sku = any($1)",
            )
            .bind(Vec::from_iter(keys.skus.iter().map(String::as_str)))
            .fetch_all(&mut *tx)
            .await?;
        }
        let entries = orders.iter().map(|stored| (stored.order.order_id, stored.entries)).collect();
        let orders = orders.into_iter().map(|stored| stored.order).collect();
        Ok(Orders {
            orders: Table::read(keys.orders, orders, |order: &Order| order.order_id),
            items: Table::read(keys.skus, items, |item: &Item| item.sku.clone()),
            entries,
            history: Vec::new(),
        })
    }

    fn save(&self, writes: &mut Writes<'_>) {
        insert_orders(writes, self.orders.inserted(), &self.entries);
        update_orders(writes, self.orders.updated(), &self.entries);
        insert_history(writes, &self.history);
        let mut items = self.items.inserted();
        items.extend(self.items.updated());
        items.sort_by(|a, b| a.sku.cmp(&b.sku));
        upsert_items(writes, items);
    }
}

fn insert_orders(writes: &mut Writes<'_>, orders: Vec<&Order>, entries: &HashMap<Uuid, i64>) {
    if orders.is_empty() {
        return;
    }
    writes
        .add(
            "insert into orders
             (order_id, customer_id, status, reason, payment, stock, total_cents, currency, lines,
              created_at, ended_at, created_event_id, ended_event_id, entries)
         select unnest($1::uuid[]), unnest($2::uuid[]), unnest($3::text[]), unnest($4::text[]),
                unnest($5::text[]), unnest($6::text[]), unnest($7::bigint[]), unnest($8::text[]),
                unnest($9::jsonb[]), unnest($10::timestamptz[]), unnest($11::timestamptz[]),
                unnest($12::uuid[]), unnest($13::uuid[]), unnest($14::bigint[])",
        )
        .bind(orders.iter().map(|o| o.order_id).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.customer_id).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.status).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.reason).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.payment).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.stock).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.total_cents).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.currency.as_str()).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| &o.lines).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.created_at).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.ended_at).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.created_event_id).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.ended_event_id).collect::<Vec<_>>())
        .bind(last_positions(&orders, entries));
}

/// The position of the last history entry of each order; 0 for an order without one.
fn last_positions(orders: &[&Order], entries: &HashMap<Uuid, i64>) -> Vec<i64> {
    orders.iter().map(|order| entries.get(&order.order_id).copied().unwrap_or(0)).collect()
}

/// What an order is about never changes; where it stands does.
fn update_orders(writes: &mut Writes<'_>, orders: Vec<&Order>, entries: &HashMap<Uuid, i64>) {
    if orders.is_empty() {
        return;
    }
    writes
        .add(
            "update orders set status = o.status, reason = o.reason, payment = o.payment,
             stock = o.stock, ended_at = o.ended_at, ended_event_id = o.ended_event_id,
             entries = o.entries
         from (select unnest($1::uuid[]) as order_id, unnest($2::text[]) as status,
                      unnest($3::text[]) as reason, unnest($4::text[]) as payment,
                      unnest($5::text[]) as stock, unnest($6::timestamptz[]) as ended_at,
                      unnest($7::uuid[]) as ended_event_id,
                      unnest($8::bigint[]) as entries) as o
         where orders.order_id = o.order_id",
        )
        .bind(orders.iter().map(|o| o.order_id).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.status).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.reason).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.payment).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.stock).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.ended_at).collect::<Vec<_>>())
        .bind(orders.iter().map(|o| o.ended_event_id).collect::<Vec<_>>())
        .bind(last_positions(&orders, entries));
}

/// An event that is there already is heard again, after the inbox forgot it: that changes nothing. Nobody can
/// be adding it just now, since its order is locked, or new.
fn insert_history(writes: &mut Writes<'_>, entries: &[NewEntry]) {
    if entries.is_empty() {
        return;
    }
    writes
        .add(
            "insert into history
             (order_id, event_id, position, event, detail, occurred_at, recorded_at)
         select order_id, event_id, position, event, detail, occurred_at, recorded_at
         from (select unnest($1::uuid[]) as order_id, unnest($2::uuid[]) as event_id,
                      unnest($3::bigint[]) as position, unnest($4::text[]) as event,
                      unnest($5::text[])::json as detail,
                      unnest($6::timestamptz[]) as occurred_at,
                      unnest($7::timestamptz[]) as recorded_at) as entry
         where not exists (select from history where history.order_id = entry.order_id
                                                 and history.event_id = entry.event_id)",
        )
        .bind(entries.iter().map(|e| e.order_id).collect::<Vec<_>>())
        .bind(entries.iter().map(|e| e.event_id).collect::<Vec<_>>())
        .bind(entries.iter().map(|e| e.position).collect::<Vec<_>>())
        .bind(entries.iter().map(|e| e.event).collect::<Vec<_>>())
        .bind(entries.iter().map(|e| e.detail.as_str()).collect::<Vec<_>>())
        .bind(entries.iter().map(|e| e.occurred_at).collect::<Vec<_>>())
        .bind(entries.iter().map(|e| e.recorded_at).collect::<Vec<_>>());
}

/// The version decides, in memory and once more here: another instance may know a newer one.
fn upsert_items(writes: &mut Writes<'_>, items: Vec<&Item>) {
    if items.is_empty() {
        return;
    }
    writes
        .add(
            "insert into items (sku, name, price_cents, currency, version)
         select unnest($1::text[]), unnest($2::text[]), unnest($3::bigint[]), unnest($4::text[]),
                unnest($5::bigint[])
         on conflict (sku) do update set name = excluded.name, price_cents = excluded.price_cents,
             currency = excluded.currency, version = excluded.version
         where items.version < excluded.version",
        )
        .bind(items.iter().map(|i| i.sku.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.name.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.price_cents).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.currency.as_str()).collect::<Vec<_>>())
        .bind(items.iter().map(|i| i.version).collect::<Vec<_>>());
}
