//! The events of the stream processor `insights`: sums of what happened to orders, by minute. It writes them in
//! transactions. A later record replaces an earlier one of the same key and minute.

use chassis::Event;
use chrono::{DateTime, Utc};
use contracts::grants::{AclOperation, AclResource, Grant};
use serde::{Deserialize, Serialize};

/// Its name: that of its user, of its group and of its folder.
pub const NAME: &str = "insights";

/// The names of its internal topics and of its transactions begin with this.
const INTERNAL: &str = "insights-";

/// Its rights beside those of a publisher: what it reads, and what Kafka Streams does with its internal topics. It is
/// no subscriber: it has no inbox and no dead letters of its own database, and no order waits for it.
pub static GRANTS: [Grant; 10] = {
    use AclOperation::{Create, Delete, Read, Write};
    use AclResource::{Group, Topic, TransactionalId};
    [
        Grant::new(NAME, Topic, "orders.created", Read),
        Grant::new(NAME, Topic, "orders.confirmed", Read),
        Grant::new(NAME, Topic, "orders.cancelled", Read),
        Grant::new(NAME, Topic, "stock.items", Read),
        Grant::new(NAME, Group, NAME, Read),
        Grant::new(NAME, Topic, INTERNAL, Create).prefix(),
        Grant::new(NAME, Topic, INTERNAL, Read).prefix(),
        Grant::new(NAME, Topic, INTERNAL, Write).prefix(),
        // It deletes the records of a repartition topic that it has read.
        Grant::new(NAME, Topic, INTERNAL, Delete).prefix(),
        Grant::new(NAME, TransactionalId, INTERNAL, Write).prefix(),
    ]
};

/// What was sold of one item in one minute, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "insights.sales", publisher = "insights", key = "sku", read_committed)]
pub struct ItemSales {
    /// The item.
    pub sku: String,
    /// What the item is called now, if that is known.
    pub name: Option<String>,
    /// ISO 4217.
    pub currency: String,
    /// The beginning of the minute in which the orders were confirmed.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub minute: DateTime<Utc>,
    /// The number of confirmed orders with the item.
    pub orders: i64,
    /// The quantity of the item in them.
    pub units: i64,
    /// Sum of quantity times unit price.
    pub revenue_cents: i64,
}

/// How many orders ended in one minute with one outcome, as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq, Event, Serialize, Deserialize)]
#[event(topic = "insights.outcomes", publisher = "insights", key = "outcome", read_committed)]
pub struct OrderOutcomes {
    /// How the orders ended: `confirmed`, or the reason of the cancellation as `orders.cancelled` has it.
    pub outcome: String,
    /// The beginning of the minute in which they ended.
    #[serde(with = "chrono::serde::ts_microseconds")]
    pub minute: DateTime<Utc>,
    /// The number of orders that ended so.
    pub orders: i64,
    /// The number of those whose beginning is known: the two times are about them.
    pub timed_orders: i64,
    /// Sum of the times from an order to its end.
    pub decision_millis_sum: i64,
    /// The longest of these times.
    pub decision_millis_max: i64,
}
