//! The aggregate: orders with their legs and their history, and the items that they can name.

mod fold;
mod history;
mod history_entry;
mod leg;
pub mod participants;
mod pending;
mod published;
mod rows;

use std::collections::BTreeSet;
use std::time::Duration;

use chassis::{Caller, Record, Table, Timer, deserialize_integer};
use chrono::{DateTime, Utc};
use events::orders::{CancelReason, OrderCreated};
use events::participants::{ASKED_BY_EVERY_ORDER, PARTICIPANTS, participants};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

pub use events::participants::LegState;
pub use history_entry::{BrokenHistory, HistoryEntry};
pub use leg::{Leg, PaymentLeg, StockLeg};

/// An order. Its status leaves `pending` once, and what was ordered never changes.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "orders", key = "order_id")]
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
    /// The position of the last entry of its history, or 0.
    #[serde(skip)]
    pub last_position: i64,
}

impl Order {
    /// A new order, of the event that announces it.
    pub fn placed(created: &OrderCreated, event_id: Uuid) -> Order {
        let lines = created.lines.iter().map(|line| Line {
            sku: line.sku.clone(),
            quantity: line.quantity,
            unit_price_cents: line.unit_price_cents,
        });
        Order {
            order_id: created.order_id,
            customer_id: created.customer_id,
            status: Status::Pending,
            reason: None,
            payment: Leg::WAITING,
            stock: Leg::WAITING,
            total_cents: created.total_cents,
            currency: created.currency.clone(),
            lines: Json(lines.collect()),
            created_at: created.occurred_at,
            ended_at: None,
            created_event_id: event_id,
            ended_event_id: None,
            last_position: 0,
        }
    }

    /// The legs; `None` where the order does not ask the participant.
    pub fn legs(&self) -> [Option<LegState>; PARTICIPANTS] {
        [Some(self.payment.state), Some(self.stock.state)]
    }

    /// The participants that it asks beside those whom every order asks.
    pub fn also_asks(&self) -> Vec<String> {
        let legs = participants().into_iter().zip(self.legs()).skip(ASKED_BY_EVERY_ORDER);
        legs.filter_map(|(it, leg)| leg.map(|_| it.service.to_owned())).collect()
    }
}

/// One item of an order.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Line {
    pub sku: String,
    pub quantity: i32,
    pub unit_price_cents: i64,
}

/// An order is pending until it is confirmed or cancelled. Then its status never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Status {
    Pending,
    Confirmed,
    Cancelled,
}

/// Why an order was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Reason {
    PaymentDeclined,
    StockRejected,
    Customer,
    Deadline,
}

impl From<Reason> for CancelReason {
    fn from(reason: Reason) -> CancelReason {
        match reason {
            Reason::PaymentDeclined => CancelReason::PaymentDeclined,
            Reason::StockRejected => CancelReason::StockRejected,
            Reason::Customer => CancelReason::Customer,
            Reason::Deadline => CancelReason::Deadline,
        }
    }
}

/// An item, as stock published it last.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "items", key = "sku")]
pub struct Item {
    pub sku: String,
    pub name: String,
    pub price_cents: i64,
    pub currency: String,
    pub version: i64,
}

/// The command of a customer who orders items.
#[derive(Clone, Debug)]
pub struct PlaceOrder {
    /// Drawn when the request arrives, so that a command that is tried again finds the row of its first attempt.
    pub order_id: Uuid,
    pub customer_id: Uuid,
    pub lines: Vec<LineRequest>,
    /// The participants that it asks beside those whom every order asks.
    pub also_asks: Vec<String>,
    /// How long it may be pending.
    pub deadline: Option<Duration>,
}

/// One item that a customer orders.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct LineRequest {
    /// On one line only. In Unicode's normalization form NFKC, without invisible characters and
    /// without blanks other than the space, which is neither first nor last.
    #[schema(min_length = 1, max_length = 64, pattern = r"^[^\x00-\x1f\x7f-\x9f]*$")]
    #[schema(examples("deck-lantern"))]
    pub sku: String,
    #[schema(minimum = 1, maximum = 1_000, examples(2))]
    #[serde(deserialize_with = "deserialize_integer")]
    pub quantity: i32,
}

/// The command that cancels an order, for its customer.
#[derive(Clone, Debug)]
pub struct CancelOrder {
    pub order_id: Uuid,
    /// Who cancels it. The order of another customer is as if there were none.
    pub caller: Caller,
}

/// The timer of an order, which is cancelled if it is pending still. No clock alone cancels it, and no answer that came
/// in time is unread.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Deadline {
    pub order_id: Uuid,
}

impl Timer for Deadline {
    const NAME: &'static str = "timer/deadline";
    const MEASURED: bool = true;
    const CAUGHT_UP: bool = true;

    fn key(&self) -> String {
        self.order_id.to_string()
    }
}

/// A row that is added to an order's history.
#[derive(Clone, Debug, PartialEq, Record)]
#[record(table = "history", key = "event_id")]
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

/// A pending order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Record)]
#[record(table = "pending_orders", key = "order_id", immutable)]
pub struct PendingOrder {
    pub created_at: DateTime<Utc>,
    pub order_id: Uuid,
}

/// The rows of one batch.
#[derive(Default)]
pub struct Orders {
    orders: Table<Order>,
    items: Table<Item>,
    history: Vec<NewHistoryEntry>,
    new_pending: BTreeSet<PendingOrder>,
    no_longer_pending: BTreeSet<PendingOrder>,
}

impl Orders {
    /// An order, if there is one.
    pub fn order(&self, order_id: Uuid) -> Option<&Order> {
        self.orders.get(&order_id)
    }

    /// An order, if there is one, to change it.
    pub fn order_mut(&mut self, order_id: Uuid) -> Option<&mut Order> {
        self.orders.get_mut(&order_id)
    }

    /// An order that is among the rows.
    ///
    /// # Panics
    /// If it is not.
    pub fn loaded_order(&mut self, order_id: Uuid) -> &mut Order {
        let order = self.order_mut(order_id);
        order.unwrap_or_else(|| panic!("order {order_id} is not among the rows"))
    }

    /// Adds or replaces an order.
    pub fn put_order(&mut self, order: Order) {
        self.orders.put(order);
    }

    /// An item, if stock published it.
    pub fn item(&self, sku: &str) -> Option<&Item> {
        self.items.get(sku)
    }

    /// Every item of the batch.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.iter()
    }

    /// Adds or replaces an item, unless a newer version is there.
    pub fn put_item(&mut self, item: Item) {
        if self.item(&item.sku).is_none_or(|known| known.version < item.version) {
            self.items.put(item);
        }
    }
}
