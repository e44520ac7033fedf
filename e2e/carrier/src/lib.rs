//! The carrier that lies: the other side of a shipping service in fault tests.
//!
//! It books parcels over HTTP, moves them on by itself, and reports by webhooks. It tells each [`Lie`] at a set rate,
//! drawn from a seed. Its ledger never lies: a checker in another process reads it with [`Ledger::read`].
//!
//! - `POST /parcels` with an `Idempotency-Key` and `{"reference": "<uuid>", "pieces": 1}` books a parcel: 202 with its
//!   `parcel_id`. A key that the carrier remembers gets the same parcel. Any other key books one more, also for a
//!   reference that has one. Another body gets 422, and so does the key of another reference.
//! - `GET /parcels?reference=…` lists the parcels of a reference with their states. It may be late or answer 500.
//! - `DELETE /parcels/{reference}` with an `Idempotency-Key` cancels every parcel of the reference that is still booked:
//!   200. It answers 422 with the state of the first that is collected or later, and 404 if there is no parcel.
//! - A webhook says `parcel.collected`, `parcel.delivered` or `parcel.lost`, signed by Standard Webhooks. Without an
//!   answer of 2xx it is sent again with the same id, 15 times at most.
//!
//! A carrier that was killed continues with the same directory: with its parcels, the age of its keys, its draws, and the
//! webhooks that nothing acknowledged, each of which has all its attempts again. With a million facts, or 20,000 parcels
//! and webhooks under way, it answers 503.

mod lies; // what it lies about, and when
mod ledger; // what it truly did
mod settings; // what is set
mod carrier; // how parcels move, and their webhooks
mod api; // its HTTP API

pub use carrier::Carrier;
pub use ledger::{Ledger, Parcel, Reference, State, Webhook, WebhookState};
pub use lies::{Lie, Lies};
pub use settings::{Settings, parse_secret};

#[cfg(test)]
mod tests;
