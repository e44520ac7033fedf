//! Who writes and who reads: this crate alone links every service. An event says who publishes it, and the handlers of
//! a service say what it consumes. From both come the rights in Kafka, the AsyncAPI document, and what the checker and
//! the tests know of subscribers.

#![warn(missing_docs)]

use std::sync::LazyLock;

use chassis::event::{Subscriptions, Topic};
use contracts::Contracts;
use events::{connect, insights};

/// Each service with the topics that it consumes. `make service` adds a line.
pub static SUBSCRIPTIONS: LazyLock<Subscriptions> = LazyLock::new(|| {
    Subscriptions::new([
        ("order", order::handlers().topics()),
        ("payment", payment::handlers().topics()),
        ("stock", stock::handlers().topics()),
        ("shipping", shipping::handlers().topics()),
    ])
});

/// The contracts, for the program `contracts` and the AsyncAPI document.
pub static CONTRACTS: LazyLock<Contracts> = LazyLock::new(|| {
    Contracts::new("holdfast", env!("CARGO_PKG_VERSION"), events::topics(), SUBSCRIPTIONS.clone())
        .title("Holdfast")
        .grants_also(&insights::GRANTS)
        .features(&connect::FEATURES)
        .creates_also(&events::INTERNAL_TOPICS)
        .description(
            "The events of orders, payments and stock. A customer places an order. Payment takes the \
             money and stock reserves the items, and each of them answers with an event. The order is \
             then confirmed or cancelled, and a cancelled order is undone in both. A stream processor \
             sums up what was sold and how orders ended.",
        )
});

/// The services that consume a topic.
pub fn subscribers(topic: &Topic) -> Vec<&'static str> {
    SUBSCRIPTIONS.subscribers(topic)
}

#[cfg(test)]
mod tests;
