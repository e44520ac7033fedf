//! The contracts between the services: one struct a schema, and the one declaration of topics.
//!
//! `schemas/*.avsc` is the source of truth; the structs here are how Rust says the same, and a test
//! holds each against its schema. A service depends on this crate and on the chassis, and on no
//! other service.

#![warn(missing_docs)]

pub mod orders;
pub mod payments;
pub mod stock;

use chassis::event::{Retention, Topic};

/// How many instances of a service can share a topic, at most.
///
/// No more than will be used soon: librdkafka sends a request for each partition (its issue 1700), so each
/// partition costs each batch a request. Measured on two cores, a saga cost up to a third less processor
/// time with 6 than with 12 (64 callers), and 6 to 17 % less with 3 than with 6 (650 to 1,300 orders a
/// second), where orders ended after 59 to 104 ms at the median and not after 77 to 210. More can be added.
const PARTITIONS: i32 = 3;

/// Facts are kept for two weeks: a consumer may be down that long, less a day. A test holds this
/// against the inbox, which must remember for longer.
pub const FACTS: Retention = Retention::Days(14);

/// State is kept for ever: the newest record of each key.
const STATE: Retention = Retention::Compact;

/// Every topic there is, with publisher and subscribers.
///
/// ```text
/// topic               published by   heard by
/// orders.created      order          payment, stock
/// orders.confirmed    order          (whoever ships, mails or counts)
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

/// Reads the code of a currency as ISO 4217 writes them, in three capital letters; whether there is one of
/// that name is not asked.
///
/// # Errors
/// If it is written in any other way.
pub fn currency(code: &str) -> Result<String, &'static str> {
    match code.len() == 3 && code.bytes().all(|letter| letter.is_ascii_uppercase()) {
        true => Ok(code.to_string()),
        false => Err("it is not three capital letters"),
    }
}

#[cfg(test)]
mod tests;
