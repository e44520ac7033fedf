//! The contracts between the services: one struct for each schema, and the one declaration of topics.
//!
//! `schemas/*.avsc` is the source of truth; the structs here are the same contracts in Rust, and a
//! test compares each with its schema. A record within a schema also has a struct of its own, under
//! the record's name, because the decoder compares the names. A service depends on this crate and on
//! the chassis, and on no other service.

#![warn(missing_docs)]

pub mod connect;
pub mod insights;
pub mod orders;
pub mod payments;
mod retention;
pub mod stock;

use chassis::event::Topic;
use contracts::{Contracts, InternalTopic};

pub use retention::{FACT_RETENTION, TOLERATED_OUTAGE};

/// All topics of the saga, with publisher and subscribers. Each record in them is an event of a service's outbox.
///
/// ```text
/// topic               published by   subscribers
/// orders.created      order          payment, stock
/// orders.confirmed    order          (shipping, mail, reports)
/// orders.cancelled    order          payment, stock
/// payments.verified   payment        order
/// payments.declined   payment        order
/// payments.refunded   payment        order
/// stock.reserved      stock          order
/// stock.rejected      stock          order
/// stock.released      stock          order
/// stock.items         stock          order            compacted: state, not facts
/// ```
pub static TOPICS: [&Topic; 10] = [
    &orders::CREATED,
    &orders::CONFIRMED,
    &orders::CANCELLED,
    &payments::VERIFIED,
    &payments::DECLINED,
    &payments::REFUNDED,
    &stock::RESERVED,
    &stock::REJECTED,
    &stock::RELEASED,
    &stock::ITEMS,
];

/// The topics of the stream processor: what is computed from those of the saga.
pub static COMPUTED_TOPICS: [&Topic; 2] = [&insights::SALES, &insights::OUTCOMES];

/// Every declared topic: those of the saga, then the computed ones.
pub static DECLARED_TOPICS: [&Topic; 12] = {
    let mut all = [TOPICS[0]; TOPICS.len() + COMPUTED_TOPICS.len()];
    let mut nth = 0;
    while nth < all.len() {
        all[nth] = match nth.checked_sub(TOPICS.len()) {
            None => TOPICS[nth],
            Some(computed) => COMPUTED_TOPICS[computed],
        };
        nth += 1;
    }
    all
};

/// The topics that are no events, and that `contracts apply` creates.
pub static INTERNAL_TOPICS: [InternalTopic; 5] = {
    let [configs, offsets, statuses] = connect::STORAGE;
    [configs, offsets, statuses, connect::HEARTBEATS, connect::DEAD_LETTERS]
};

/// The topics, for the program `contracts` and the AsyncAPI document.
pub static CONTRACTS: Contracts =
    Contracts::new("holdfast", env!("CARGO_PKG_VERSION"), &DECLARED_TOPICS)
        .title("Holdfast")
        .grants_also(&[&insights::GRANTS])
        .features(&connect::FEATURES)
        .creates_also(&INTERNAL_TOPICS)
        .description(
            "The events of orders, payments and stock. A customer places an order. Payment takes the \
             money and stock reserves the items, and each of them answers with an event. The order is \
             then confirmed or cancelled, and a cancelled order is undone in both. A stream processor \
             sums up what was sold and how orders ended.",
        );

/// Checks that a currency has the form of an ISO 4217 code, three capital letters; whether the code
/// is assigned is not checked.
///
/// # Errors
/// If it has any other form.
pub fn parse_currency(code: &str) -> Result<String, &'static str> {
    match code.len() == 3 && code.bytes().all(|letter| letter.is_ascii_uppercase()) {
        true => Ok(code.to_string()),
        false => Err("it is not three capital letters"),
    }
}

#[cfg(test)]
mod tests;
