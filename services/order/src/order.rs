//! The aggregate: orders with their two legs and their history, and the items they can name.

use chassis::{Event, HandlerContext, Record, Table, deserialize_integer};
use chrono::{DateTime, Utc};
use events::orders::{
    CancelReason, ConfirmedLine, OrderCancelled, OrderConfirmed, OrderCreated, OrderLine,
};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

#[path = "order_rows.rs"]
mod rows;

/// An order: the row that decides.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "orders", key = "order_id")]
// What an order is about never changes; where it stands does.
pub struct Order {
    pub order_id: Uuid,
    #[record(immutable)]
    pub customer_id: Uuid,
    pub status: Status,
    #[schema(required)]
    pub reason: Option<Reason>,
    pub payment: PaymentLeg,
    pub stock: StockLeg,
    #[record(immutable)]
    pub total_cents: i64,
    #[record(immutable)]
    pub currency: String,
    #[record(immutable)]
    #[schema(value_type = Vec<Line>)]
    pub lines: Json<Vec<Line>>,
    #[record(immutable)]
    pub created_at: DateTime<Utc>,
    #[schema(required)]
    pub ended_at: Option<DateTime<Utc>>,
    #[record(immutable)]
    #[serde(skip)]
    pub created_event_id: Uuid,
    #[serde(skip)]
    pub ended_event_id: Option<Uuid>,
    /// The position of the last entry of its history; 0 without one.
    #[serde(skip)]
    pub last_position: i64,
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
        let line = |Line { sku, quantity, unit_price_cents }| OrderLine {
            sku,
            quantity,
            unit_price_cents,
        };
        OrderCreated {
            order_id: self.order_id,
            customer_id: self.customer_id,
            lines: self.lines.iter().cloned().map(line).collect(),
            total_cents: self.total_cents,
            currency: self.currency.clone(),
            occurred_at: self.created_at,
        }
    }

    pub fn confirmed(&self, occurred_at: DateTime<Utc>) -> OrderConfirmed {
        let line = |Line { sku, quantity, unit_price_cents }| ConfirmedLine {
            sku,
            quantity,
            unit_price_cents,
        };
        OrderConfirmed {
            order_id: self.order_id,
            customer_id: self.customer_id,
            lines: self.lines.iter().cloned().map(line).collect(),
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

/// An item, as last heard of.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "items", key = "sku")]
pub struct Item {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
    pub currency: String,
    pub version: i64,
}

/// What is added to an order's history.
#[derive(Clone, Debug, PartialEq)]
pub struct NewHistoryEntry {
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
    pub lines: Vec<LineRequest>,
    /// Whether a deadline is set, at which the order is cancelled.
    pub has_deadline: bool,
}

/// One item that a customer wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LineRequest {
    /// Stands on one line only. In Unicode's normalization form NFKC, without invisible characters and
    /// without blanks other than the space, which is neither first nor last.
    #[schema(min_length = 1, max_length = 64, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    #[schema(examples("deck-lantern"))]
    pub sku: String,
    #[schema(minimum = 1, maximum = 1_000, examples(2))]
    #[serde(deserialize_with = "deserialize_integer")]
    pub quantity: i32,
}

/// An order is to end: by its customer's wish, or because its time is over.
#[derive(Clone, Debug)]
pub struct CancelOrder {
    pub order_id: Uuid,
    pub reason: Reason,
}

/// An order that is cancelled if it is still pending when it is older than the deadline.
#[derive(Record)]
#[record(table = "deadlines", key = "order_id")]
struct Deadline {
    order_id: Uuid,
    created_at: DateTime<Utc>,
}

/// The rows of one batch.
#[derive(Default)]
pub struct Orders {
    orders: Table<Order>,
    items: Table<Item>,
    history: Vec<NewHistoryEntry>,
    deadlines: Vec<Deadline>,
}

impl Orders {
    /// An order, if there is one.
    pub fn order(&self, order_id: Uuid) -> Option<&Order> {
        self.orders.get(&order_id)
    }

    /// An order, if there is one, to be changed in its place.
    pub fn order_mut(&mut self, order_id: Uuid) -> Option<&mut Order> {
        self.orders.get_mut(&order_id)
    }

    /// Adds an order, or replaces what is known of one.
    pub fn put_order(&mut self, order: Order) {
        self.orders.put(order);
    }

    /// Has the sweep cancel a new order if it is still pending at the deadline.
    pub fn set_deadline(&mut self, order_id: Uuid, created_at: DateTime<Utc>) {
        self.deadlines.push(Deadline { order_id, created_at });
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
            self.items.put(item);
        }
    }

    /// Adds the event that is being handled to its order's history.
    pub fn record_received<E: Event>(
        &mut self,
        event: &E,
        order_id: Uuid,
        occurred_at: DateTime<Utc>,
        context: HandlerContext,
    ) {
        if let Some(event_id) = context.causation_id {
            self.append_history(event, order_id, event_id, occurred_at, context);
        }
    }

    /// Adds the event that is being published to its order's history.
    pub fn record_published<E: Event>(
        &mut self,
        event: &E,
        order_id: Uuid,
        context: HandlerContext,
    ) {
        self.append_history(event, order_id, context.event_id, context.now, context);
    }

    fn append_history<E: Event>(
        &mut self,
        event: &E,
        order_id: Uuid,
        event_id: Uuid,
        occurred_at: DateTime<Utc>,
        HandlerContext { now: recorded_at, .. }: HandlerContext,
    ) {
        // Counted in the order's own row, under its lock.
        let order = self.orders.get_mut(&order_id);
        let order = order.unwrap_or_else(|| panic!("order {order_id} is not among the rows"));
        order.last_position += 1;
        self.history.push(NewHistoryEntry {
            order_id,
            event_id,
            position: order.last_position,
            event: E::topic().name,
            detail: serde_json::to_string(event).expect("events are plain JSON"),
            occurred_at,
            recorded_at,
        });
    }

    /// What was added to histories.
    #[cfg(test)]
    pub fn history(&self) -> &[NewHistoryEntry] {
        &self.history
    }
}
