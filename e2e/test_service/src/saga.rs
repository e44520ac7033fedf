//! What the events of other services cause. Each handler is a pure function from an event and the rows in memory to
//! what is published.

use chassis::{HandlerContext, HandlerResult, Outcome, unprocessable};
use events::orders::{OrderCancelled, OrderCreated};
use events::payments::PaymentVerified;

use crate::parcel::{Parcel, Parcels, SERVICE, State};
use crate::published::{ParcelPacked, ParcelRefused, ParcelUnpacked};

/// A parcel holds so many units.
pub const UNITS_MAX: i64 = 100;

/// The answer to an order.
#[derive(Debug, PartialEq, Outcome)]
pub enum Answer {
    Packed(ParcelPacked),
    Refused(ParcelRefused),
}

/// `orders.created` → nothing before payment's yes, if the order asks this service
pub fn note_order(
    order: &OrderCreated,
    parcels: &mut Parcels,
    context: HandlerContext,
) -> HandlerResult<Answer> {
    let parcel = parcels.parcel_or_new(order.order_id, context);
    if !order.also_asks(SERVICE) || parcel.state != State::Waiting || parcel.units.is_some() {
        return Ok(None); // not asked; noted or answered before, or cancelled before it arrived
    }
    let units = order.lines.iter().map(|line| i64::from(line.quantity)).sum();
    if units <= 0 {
        unprocessable!("order {} has {units} units", order.order_id);
    }
    Ok(begin(Parcel { units: Some(units), ..parcel }, parcels, context))
}

/// `payments.verified` → nothing before the order has arrived
pub fn note_payment(
    payment: &PaymentVerified,
    parcels: &mut Parcels,
    context: HandlerContext,
) -> HandlerResult<Answer> {
    let parcel = parcels.parcel_or_new(payment.order_id, context);
    if parcel.state != State::Waiting || parcel.paid {
        return Ok(None); // noted or answered before, or cancelled before it arrived
    }
    Ok(begin(Parcel { paid: true, ..parcel }, parcels, context))
}

/// Begins the step if both halves are there → `parcels.packed` | `parcels.refused`
fn begin(noted: Parcel, parcels: &mut Parcels, context: HandlerContext) -> Option<Answer> {
    let Parcel { units: Some(units), paid: true, .. } = noted else {
        parcels.put_parcel(Parcel { updated_at: context.now, ..noted });
        return None;
    };
    let parcel = Parcel {
        state: if units <= UNITS_MAX { State::Packed } else { State::Refused },
        response_event_id: Some(context.event_id),
        created_at: context.now,
        updated_at: context.now,
        ..noted
    };
    let answer = match parcel.state {
        State::Packed => Answer::Packed(parcel.packed()),
        _ => Answer::Refused(parcel.refused()),
    };
    parcels.put_parcel(parcel);
    Some(answer)
}

/// `orders.cancelled` → `parcels.unpacked`, unless the answer was a no
pub fn undo(
    order: &OrderCancelled,
    parcels: &mut Parcels,
    context: HandlerContext,
) -> HandlerResult<ParcelUnpacked> {
    let parcel = parcels.parcel_or_new(order.order_id, context);
    let state = match parcel.state {
        // Undo here what the yes did.
        State::Packed => State::Unpacked,
        // The step had not begun. The row is a tombstone: the step never begins.
        State::Waiting => State::Void,
        State::Refused | State::Unpacked | State::Void => return Ok(None),
    };
    let undone = Parcel {
        state,
        compensation_event_id: Some(context.event_id),
        updated_at: context.now,
        ..parcel
    };
    let unpacked = undone.unpacked();
    parcels.put_parcel(undone);
    Ok(Some(unpacked))
}
