//! The aggregate: the shipment of each order, and what happened to it.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use chassis::event::AnsweredTask;
use chassis::{
    Answered, Caller, HandlerContext, Loader, Loads, Outcome, PublishedEvent, Record, Republish,
    Table, UnitOfWork, WriteBatch,
};
use chrono::{DateTime, TimeDelta, Utc};
use events::orders::OrderConfirmed;
use events::shipments::{FailReason, ShipmentBooked, ShipmentDelivered, ShipmentFailed};
use serde::{Deserialize, Serialize};
use sqlx::types::Json;
use utoipa::ToSchema;
use uuid::Uuid;

use crate::carrier::{BookParcel, CancelParcel, CarrierNews, FindParcels, LostParcel, NoNews};

/// The settings of this process that decisions need.
pub static SETTINGS: OnceLock<Settings> = OnceLock::new();

/// What decisions need to know beside the rows.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// For how long the carrier may tell nothing of a shipment.
    pub news_after: TimeDelta,
    /// Orders that were confirmed before are not shipped.
    pub ship_since: DateTime<Utc>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { news_after: TimeDelta::hours(1), ship_since: DateTime::UNIX_EPOCH }
    }
}

/// The shipment of an order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "shipments", key = "order_id")]
pub struct Shipment {
    pub order_id: Uuid,
    #[record(immutable)]
    pub customer_id: Uuid,
    #[record(immutable)]
    pub pieces: i64,
    pub state: State,
    #[schema(required)]
    pub parcel_id: Option<Uuid>,
    #[schema(required)]
    pub reason: Option<Reason>,
    /// How often a parcel was booked.
    pub bookings: i32,
    /// What is known of the last booking.
    #[serde(skip)]
    pub booking: Booking,
    /// How often the carrier was asked since it told something; the number beyond the last means that a person is.
    pub inquiries: i32,
    #[serde(skip)]
    pub booked: Option<Json<Published<ShipmentBooked>>>,
    #[serde(skip)]
    pub ended: Option<Json<Published<Ended>>>,
    #[serde(skip)]
    pub last_position: i64,
    #[record(immutable)]
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// The state of a shipment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum State {
    /// The carrier is asked for a parcel.
    #[default]
    Booking,
    Booked,
    Collected,
    Delivered,
    Failed,
    /// The carrier is asked to cancel the parcel.
    Cancelling,
    Cancelled,
}

/// Why a shipment failed or was cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Reason {
    /// The carrier refused to book a parcel.
    Refused,
    /// The carrier lost the parcel.
    Lost,
    /// A person gave it up.
    GivenUp,
    /// It was cancelled in time.
    Cancelled,
}

impl From<Reason> for FailReason {
    fn from(reason: Reason) -> FailReason {
        match reason {
            Reason::Refused => FailReason::Refused,
            Reason::Lost => FailReason::Lost,
            Reason::GivenUp => FailReason::GivenUp,
            Reason::Cancelled => FailReason::Cancelled,
        }
    }
}

/// What is known of a booking.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, sqlx::Type)]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Booking {
    #[default]
    Asked,
    /// The carrier has said that it is done.
    Done,
    Unknown,
}

/// An event that was published, as it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Published<E> {
    pub event_id: Uuid,
    pub event: E,
}

/// What ends a shipment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Outcome)]
pub enum Ended {
    Delivered(ShipmentDelivered),
    Failed(ShipmentFailed),
}

impl Shipment {
    pub fn has_ended(&self) -> bool {
        matches!(self.state, State::Delivered | State::Failed | State::Cancelled)
    }
}

impl Republish for Shipment {
    type Events = (ShipmentBooked, ShipmentDelivered, ShipmentFailed);

    fn published_events(&self) -> Vec<PublishedEvent> {
        let booked = self.booked.iter().map(|Json(Published { event_id, event })| {
            PublishedEvent::new(*event_id, event.occurred_at, event)
        });
        let ended = self.ended.iter().map(|Json(Published { event_id, event })| match event {
            Ended::Delivered(event) => PublishedEvent::new(*event_id, event.occurred_at, event),
            Ended::Failed(event) => PublishedEvent::new(*event_id, event.occurred_at, event),
        });
        booked.chain(ended).collect()
    }
}

/// The command that cancels a shipment, for its customer.
#[derive(Clone, Debug)]
pub struct CancelShipment {
    pub order_id: Uuid,
    /// Who cancels it. The shipment of another customer is as if there were none.
    pub caller: Caller,
}

/// What happened to a shipment.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "shipment_history", key = "order_id", immutable)]
pub struct HistoryEntry {
    #[serde(skip)]
    pub order_id: Uuid,
    /// Counts the entries of the order from 1.
    pub position: i64,
    pub what: String,
    /// The state after it.
    pub state: State,
    pub at: DateTime<Utc>,
    /// The event that caused it. None for a command, and for news that nothing waited for.
    #[schema(required)]
    pub cause_id: Option<Uuid>,
}

/// The rows of one batch.
#[derive(Default)]
pub struct Shipments {
    shipments: Table<Shipment>,
    pub(crate) history: Vec<HistoryEntry>,
    pub(crate) settings: Settings,
}

impl Shipments {
    /// The shipment of an order, if the order is confirmed.
    pub fn shipment(&self, order_id: Uuid) -> Option<&Shipment> {
        self.shipments.get(&order_id)
    }

    /// Adds or replaces a shipment, with an entry of its history. Returns it as it is stored.
    pub fn put(&mut self, shipment: &Shipment, what: String, context: HandlerContext) -> Shipment {
        let HandlerContext { now: at, causation_id: cause_id, .. } = context;
        let Shipment { order_id, state, last_position, .. } = *shipment;
        let position = last_position + 1;
        self.history.push(HistoryEntry { order_id, position, what, state, at, cause_id });
        let stored = Shipment { last_position: position, updated_at: at, ..shipment.clone() };
        self.shipments.put(stored.clone());
        stored
    }
}

/// Each of these needs the row of its order.
macro_rules! loads_by_order_id {
    ($($what:ty: $($field:ident).+),+) => {$(
        impl Loads<$what> for Shipments {
            fn keys(what: &$what, keys: &mut BTreeSet<Uuid>) {
                keys.insert(what.$($field).+);
            }
        }
    )+};
}
loads_by_order_id!(
    OrderConfirmed: order_id, CancelShipment: order_id, NoNews: order_id,
    Answered<BookParcel>: call.order_id, Answered<FindParcels>: call.order_id,
    Answered<CancelParcel>: call.order_id, AnsweredTask<LostParcel>: task.order_id
);

impl Loads<CarrierNews> for Shipments {
    fn keys(news: &CarrierNews, keys: &mut BTreeSet<Uuid>) {
        keys.extend(news.told().map(|(parcel, _)| parcel.reference));
    }
}

impl UnitOfWork for Shipments {
    type Keys = BTreeSet<Uuid>;

    async fn load(loader: &mut Loader<'_>, keys: BTreeSet<Uuid>) -> sqlx::Result<Shipments> {
        let settings = SETTINGS.get().copied().unwrap_or_default();
        Ok(Shipments { shipments: loader.lock(keys).await?, settings, history: Vec::new() })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.shipments).insert_all(&self.history);
    }
}
