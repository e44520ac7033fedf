//! The contracts between the services: one struct a schema, and the one declaration of topics.
//!
//! `schemas/*.avsc` is the source of truth; the structs here are how Rust says the same, and a test
//! holds each against its schema. A service depends on this crate and on the chassis, and on no
//! other service.

#![warn(missing_docs)]

pub mod orders;
pub mod payments;
mod retention;
pub mod stock;

use chassis::event::Topic;

pub use retention::FACT_RETENTION;

/// Every topic there is, with publisher and subscribers.
///
/// ```text
/// topic               published by   subscribers
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
pub fn parse_currency(code: &str) -> Result<String, &'static str> {
    match code.len() == 3 && code.bytes().all(|letter| letter.is_ascii_uppercase()) {
        true => Ok(code.to_string()),
        false => Err("it is not three capital letters"),
    }
}

#[cfg(test)]
mod tests;
