//! The tests of shipping: its rules, every sequence of what may come, then its edges on a real database. This file has
//! what they share.

mod rules;
mod sequences;
mod edges;
mod statements;

use chassis::event::{Answered, Refused, Unknown};
use chassis::{Call, CallResult, HandlerContext, HandlerResult};
use chrono::{DateTime, TimeDelta};
use events::orders::{ConfirmedLine, OrderConfirmed};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::saga::Wants;
use crate::{
    BookParcel, BookedParcel, CarrierNews, FindParcels, FoundParcel, FoundParcels, ParcelState,
    Shipment, Shipments, State, saga,
};

const ORDER: Uuid = Uuid::from_u128(7);
const CUSTOMER: Uuid = Uuid::from_u128(8);
const PARCEL: Uuid = Uuid::from_u128(0xa);
const OTHER_PARCEL: Uuid = Uuid::from_u128(0xb);
const NEWS_AFTER: TimeDelta = TimeDelta::seconds(100);

fn context(nth: i64) -> HandlerContext {
    let (event_id, causation_id) = (Uuid::from_u128(nth as u128), Some(Uuid::from_u128(1)));
    HandlerContext { now: DateTime::from_timestamp(nth, 0).unwrap(), event_id, causation_id }
}

fn no_shipments() -> Shipments {
    let mut rows = Shipments::default();
    rows.settings.news_after = NEWS_AFTER;
    rows
}

fn confirmed(order_id: Uuid, quantities: &[i32]) -> OrderConfirmed {
    let line = |quantity: &i32| ConfirmedLine {
        sku: "pen".into(),
        quantity: *quantity,
        unit_price_cents: 150,
    };
    OrderConfirmed {
        order_id,
        customer_id: CUSTOMER,
        lines: quantities.iter().map(line).collect(),
        total_cents: 150,
        currency: "EUR".into(),
        occurred_at: context(0).now,
    }
}

fn done(parcel_id: Uuid) -> CallResult<BookedParcel> {
    CallResult::Done(BookedParcel { parcel_id })
}

fn refused<A>() -> CallResult<A> {
    CallResult::Refused(Refused { status: 422, detail: "it is collected".into() })
}

fn unknown<A>() -> CallResult<A> {
    CallResult::Unknown(Unknown { tries: 9, detail: "it answered 503".into() })
}

fn parcels(parcels: &[(Uuid, ParcelState)]) -> CallResult<FoundParcels> {
    let parcels = parcels.iter().map(|&(parcel_id, state)| FoundParcel { parcel_id, state });
    CallResult::Done(FoundParcels { parcels: parcels.collect() })
}

fn news(kind: &str, order_id: Uuid, parcel_id: Uuid) -> Value {
    let data = json!({"reference": order_id, "parcel_id": parcel_id, "weight": 7});
    json!({"type": kind, "timestamp": "2026-11-27T12:00:00Z", "data": data})
}

fn answered<C: Call>(call: C, result: CallResult<C::Answer>) -> Answered<C> {
    Answered { call, result }
}

/// The rows of one order, and what comes to them one after the other, ten seconds apart.
struct Case {
    rows: Shipments,
    now: i64,
}

impl Case {
    /// Its order is confirmed.
    fn booking() -> Case {
        let mut rows = no_shipments();
        saga::ship(&confirmed(ORDER, &[2, 1]), &mut rows, context(10)).unwrap();
        Case { rows, now: 10 }
    }

    /// The carrier has booked a parcel.
    fn booked() -> Case {
        let mut case = Case::booking();
        case.book(done(PARCEL));
        case
    }

    fn decide<E>(
        &mut self,
        what: E,
        handler: fn(&E, &mut Shipments, HandlerContext) -> HandlerResult<Wants>,
    ) -> Option<Wants> {
        self.now += 10;
        handler(&what, &mut self.rows, context(self.now)).unwrap()
    }

    fn book(&mut self, result: CallResult<BookedParcel>) -> Option<Wants> {
        let nth = self.shipment().bookings;
        self.decide(answered(BookParcel { order_id: ORDER, pieces: 3, nth }, result), saga::booked)
    }

    /// The carrier answers an inquiry that is made now.
    fn find(&mut self, found: &[(Uuid, ParcelState)]) -> Option<Wants> {
        let Shipment { order_id, bookings, parcel_id, .. } = *self.shipment();
        let call = FindParcels { order_id, bookings, parcel_id };
        self.decide(answered(call, parcels(found)), saga::found)
    }

    fn hear(&mut self, kind: &str, parcel_id: Uuid) -> Option<Wants> {
        let news = serde_json::from_value::<CarrierNews>(news(kind, ORDER, parcel_id)).unwrap();
        self.decide(news, saga::hear)
    }

    fn shipment(&self) -> &Shipment {
        self.rows.shipment(ORDER).unwrap()
    }

    fn state(&self) -> State {
        self.shipment().state
    }

    /// The last entry of the history.
    fn last(&self) -> &str {
        &self.rows.history.last().unwrap().what
    }
}
