//! The events of the shipping service, which a stack may have.

use chassis::Event;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The name of the service.
pub const NAME: &str = "shipping";

/// The carrier has a parcel for an order.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "shipments.booked", publisher = "shipping", key = "order_id")]
pub struct ShipmentBooked {
    /// The order.
    pub order_id: Uuid,
    /// The carrier's id of the parcel.
    pub parcel_id: Uuid,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// The parcel of an order is delivered.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "shipments.delivered", publisher = "shipping", key = "order_id")]
pub struct ShipmentDelivered {
    /// The order.
    pub order_id: Uuid,
    /// The carrier's id of the parcel.
    pub parcel_id: Uuid,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// The order is not delivered.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "shipments.failed", publisher = "shipping", key = "order_id")]
pub struct ShipmentFailed {
    /// The order.
    pub order_id: Uuid,
    /// The reason.
    pub reason: FailReason,
    /// Database time of the decision.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// Why a shipment failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailReason {
    /// The carrier refused to book a parcel.
    Refused,
    /// The carrier lost the parcel.
    Lost,
    /// A person gave it up.
    GivenUp,
    /// It was cancelled in time.
    Cancelled,
    /// A reason newer than this reader.
    Unknown,
}
