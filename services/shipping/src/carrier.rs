//! What is asked of the carrier, of the clock and of a person, and what the carrier tells by itself.

use chassis::event::{Question, Task, TimerKey, Webhook};
use chassis::{Call, Request, Timer, call_target};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

call_target!(CarrierSettings, "carrier", "CARRIER");

/// Books a parcel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BookParcel {
    pub order_id: Uuid,
    pub pieces: i64,
    /// Which booking of the shipment it is, from 1.
    pub nth: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BookedParcel {
    pub parcel_id: Uuid,
}

impl Call for BookParcel {
    const NAME: &'static str = "call/carrier.book";
    type Answer = BookedParcel;

    fn key(&self) -> String {
        self.order_id.to_string()
    }

    fn request(&self) -> Request {
        let body = json!({ "reference": self.order_id, "pieces": self.pieces });
        Request::post(["parcels"]).json(&body)
    }
}

/// Asks which parcels the carrier has for an order. What was known when it was asked tells whether its answer is stale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FindParcels {
    pub order_id: Uuid,
    pub bookings: i32,
    pub parcel_id: Option<Uuid>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundParcels {
    pub parcels: Vec<FoundParcel>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FoundParcel {
    pub parcel_id: Uuid,
    pub state: ParcelState,
}

/// How far a parcel is, at the carrier. Of several parcels of an order, the one that is farthest counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParcelState {
    Lost,
    Booked,
    Collected,
    Delivered,
    /// As good as none: it is cancelled, or in a state that is newer than this version.
    #[serde(other)]
    Other,
}

impl Call for FindParcels {
    const NAME: &'static str = "call/carrier.find";
    type Answer = FoundParcels;

    fn key(&self) -> String {
        self.order_id.to_string()
    }

    fn request(&self) -> Request {
        Request::get(["parcels"]).query("reference", self.order_id)
    }
}

/// Cancels the parcel of an order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CancelParcel {
    pub order_id: Uuid,
}

impl Call for CancelParcel {
    const NAME: &'static str = "call/carrier.cancel";
    type Answer = Value; // any success will do, also one without a body

    fn key(&self) -> String {
        self.order_id.to_string()
    }

    fn request(&self) -> Request {
        Request::new(chassis::Method::Delete, ["parcels".to_string(), self.order_id.to_string()])
    }
}

/// The carrier has told nothing of a shipment for a while.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NoNews {
    pub order_id: Uuid,
}

impl Timer for NoNews {
    const NAME: &'static str = "timer/no-news";

    fn key(&self) -> String {
        self.order_id.to_string()
    }
}

/// What the carrier tells by itself, in any order and more than once.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(tag = "type")]
pub enum CarrierNews {
    #[serde(rename = "parcel.collected")]
    Collected { data: Parcel },
    #[serde(rename = "parcel.delivered")]
    Delivered { data: Parcel },
    #[serde(rename = "parcel.lost")]
    Lost { data: Parcel },
    #[serde(other)]
    Other,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Parcel {
    /// The order.
    pub reference: Uuid,
    pub parcel_id: Uuid,
}

impl CarrierNews {
    /// The parcel that it is about, and how far that is.
    pub fn told(&self) -> Option<(Parcel, ParcelState)> {
        match self {
            CarrierNews::Collected { data } => Some((*data, ParcelState::Collected)),
            CarrierNews::Delivered { data } => Some((*data, ParcelState::Delivered)),
            CarrierNews::Lost { data } => Some((*data, ParcelState::Lost)),
            CarrierNews::Other => None,
        }
    }
}

impl Webhook for CarrierNews {
    const NAME: &'static str = "webhook/carrier";

    fn awaited_by(&self) -> Option<TimerKey> {
        self.told().map(|(parcel, _)| NoNews::named(parcel.reference))
    }
}

/// Asks a person where a parcel is, or whether it is cancelled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LostParcel {
    pub order_id: Uuid,
    pub is_cancelling: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Found {
    Wait,
    Failed,
    BookAgain,
}

impl Task for LostParcel {
    const NAME: &'static str = "task/lost-parcel";
    type Answer = Found;

    fn key(&self) -> String {
        self.order_id.to_string()
    }

    fn question(&self) -> Question {
        let order_id = self.order_id;
        match self.is_cancelling {
            true => {
                Question::new(format!("Has the carrier cancelled the parcel of order {order_id}?"))
                    .choice("wait", "It has not: the shipment continues.")
                    .choice("failed", "It has: the shipment is cancelled, for good.")
            }
            false => Question::new(format!("Where is the parcel of order {order_id}?"))
                .choice("wait", "The carrier is asked again later.")
                .choice("failed", "It is given up: the shipment has failed, for good. A parcel that is there needs a cancel by hand.")
                .choice("book_again", "Another one is booked. If there is one, there are two."),
        }
    }
}
