//! A participant whose step begins when another one has said yes: it packs a parcel for an order that payment has
//! verified. docs/how-to/steps-in-sequence.md explains it.
//!
//! It notes `orders.created` and `payments.verified`, in either order, and then publishes `parcels.packed` or
//! `parcels.refused`. For `orders.cancelled` it publishes `parcels.unpacked`, unless its answer was a no.
//!
//! It has the rows, handlers and events of a generated participant, and no process: no stack starts it.

mod published; // what the service publishes
mod parcel; // the aggregate: its rows and its SQL
pub mod saga; // what events cause
#[cfg(test)]
mod tests;

pub use parcel::*;
pub use published::*;

use chassis::Handlers;

/// What the service does with the events of others.
pub fn handlers() -> Handlers<Parcels> {
    Handlers::new().on(saga::note_order).on(saga::note_payment).on(saga::undo)
}
