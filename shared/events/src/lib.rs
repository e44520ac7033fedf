//! The contracts between the services: one struct a schema, and the one declaration of topics.
//!
//! `schemas/*.avsc` is the source of truth; the structs here are how Rust says the same, and a test
//! holds each against its schema. A service depends on this crate and on the chassis, and on no
//! other service.

pub mod orders;
pub mod payments;
pub mod stock;

use chassis::event::Topic;

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

#[cfg(test)]
mod tests;
