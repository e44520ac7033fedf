//! The worker of Kafka Connect, which may carry the outboxes of the services in place of their relays: its internal
//! topics and its rights.

use contracts::InternalTopic;
use contracts::grants::{AclOperation, AclResource, Grant};

/// Its name: that of its user and of its group.
pub const NAME: &str = "connect";

/// The names of its internal topics, of its groups and of its transactions begin with this.
const INTERNAL: &str = "connect-";

/// The topic of the records by which a service learns how far the connector of its outbox has come. The migrations of
/// the chassis have its name too. The worker creates its other internal topics itself.
pub const HEARTBEATS: InternalTopic = InternalTopic {
    name: "connect-heartbeats",
    settings: &[("cleanup.policy", "delete"), ("retention.ms", "3600000")],
};

/// Its rights: to publish what the services publish, and to keep its own topics.
pub static GRANTS: [Grant; 17] = {
    use AclOperation::{Create, DescribeConfigs, Read, Write};
    use AclResource::{Group, Topic, TransactionalId};
    [
        Grant::new(NAME, Topic, "orders.created", Write),
        Grant::new(NAME, Topic, "orders.confirmed", Write),
        Grant::new(NAME, Topic, "orders.cancelled", Write),
        Grant::new(NAME, Topic, "payments.verified", Write),
        Grant::new(NAME, Topic, "payments.declined", Write),
        Grant::new(NAME, Topic, "payments.refunded", Write),
        Grant::new(NAME, Topic, "stock.reserved", Write),
        Grant::new(NAME, Topic, "stock.rejected", Write),
        Grant::new(NAME, Topic, "stock.released", Write),
        Grant::new(NAME, Topic, "stock.items", Write),
        Grant::new(NAME, Topic, INTERNAL, Create).prefix(),
        Grant::new(NAME, Topic, INTERNAL, DescribeConfigs).prefix(),
        Grant::new(NAME, Topic, INTERNAL, Read).prefix(),
        Grant::new(NAME, Topic, INTERNAL, Write).prefix(),
        Grant::new(NAME, Group, NAME, Read),
        Grant::new(NAME, Group, INTERNAL, Read).prefix(),
        Grant::new(NAME, TransactionalId, INTERNAL, Write).prefix(),
    ]
};
