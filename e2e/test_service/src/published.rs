//! The events of the service. Those of a participant lie in `shared/events`.

use chassis::Event;
use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Yes: the parcel of an order is packed.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "parcels.packed", publisher = "parcels", key = "order_id")]
pub struct ParcelPacked {
    pub order_id: Uuid,
    pub units: i64,
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// No: the order has more units than a parcel holds.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "parcels.refused", publisher = "parcels", key = "order_id")]
pub struct ParcelRefused {
    pub order_id: Uuid,
    pub units: i64,
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}

/// The parcel of a cancelled order is unpacked; without units if it had not been packed.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "parcels.unpacked", publisher = "parcels", key = "order_id")]
pub struct ParcelUnpacked {
    pub order_id: Uuid,
    pub units: Option<i64>,
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub occurred_at: DateTime<Utc>,
}
