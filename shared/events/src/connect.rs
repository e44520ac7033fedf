//! The worker of Kafka Connect, which may carry the outboxes of the services in place of their relays, and may write the
//! reporting database: its topics and its rights.

use contracts::InternalTopic;
use contracts::grants::{AclOperation, AclResource, Grant};

/// Its name: that of its user and of its group.
pub const NAME: &str = "connect";

/// The names of its transactions begin with this.
const TRANSACTIONS: &str = "connect-";

/// The names of the groups of the reporting database's connectors begin with this: Kafka Connect names the group of a
/// connector so.
const SINK_GROUPS: &str = "connect-reporting-";

/// The topics in which the worker keeps the settings of its connectors, their positions and their states. It finds them
/// by these names, and may not create them.
const CONFIGS: &str = "connect-configs";
const OFFSETS: &str = "connect-offsets";
const STATUSES: &str = "connect-statuses";

/// These topics. A connector reads the whole topic of positions at its start, and each of its transactions writes to it,
/// so that one is compacted early. A reader that starts from the beginning has ten minutes to see a deletion.
pub const STORAGE: [InternalTopic; 3] = [
    compacted(CONFIGS),
    InternalTopic {
        name: OFFSETS,
        settings: &[
            ("cleanup.policy", "compact"),
            ("segment.bytes", "1048576"),
            ("min.cleanable.dirty.ratio", "0.1"),
            ("delete.retention.ms", "600000"),
        ],
    },
    compacted(STATUSES),
];

/// The topic of the records by which a service learns how far the connector of its outbox has come. The migrations of
/// the chassis have its name too.
pub const HEARTBEATS: InternalTopic = InternalTopic {
    name: "connect-heartbeats",
    settings: &[("cleanup.policy", "delete"), ("retention.ms", "3600000")],
};

/// The topic of what a connector of the reporting database could not read, with the reason in the headers. A record may
/// have the id of a customer, so it stays for 14 days, as in the topic of its event.
pub const DEAD_LETTERS: InternalTopic = InternalTopic {
    name: "reporting-dead-letters",
    settings: &[("cleanup.policy", "delete"), ("retention.ms", "1209600000")],
};

/// Its rights: to publish what the services publish, to read what the reporting database has, and to keep its own
/// topics.
pub static GRANTS: [Grant; 27] = {
    use AclOperation::{DescribeConfigs, Read, Write};
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
        Grant::new(NAME, Topic, "orders.confirmed", Read),
        Grant::new(NAME, Topic, "insights.sales", Read),
        Grant::new(NAME, Topic, "insights.outcomes", Read),
        Grant::new(NAME, Topic, DEAD_LETTERS.name, Write),
        Grant::new(NAME, Topic, HEARTBEATS.name, Write),
        Grant::new(NAME, Topic, CONFIGS, Read),
        Grant::new(NAME, Topic, CONFIGS, Write),
        Grant::new(NAME, Topic, OFFSETS, Read),
        Grant::new(NAME, Topic, OFFSETS, Write),
        Grant::new(NAME, Topic, STATUSES, Read),
        Grant::new(NAME, Topic, STATUSES, Write),
        // It does not start if one of them is not compacted.
        Grant::new(NAME, Topic, CONFIGS, DescribeConfigs),
        Grant::new(NAME, Topic, OFFSETS, DescribeConfigs),
        Grant::new(NAME, Topic, STATUSES, DescribeConfigs),
        Grant::new(NAME, Group, NAME, Read),
        Grant::new(NAME, Group, SINK_GROUPS, Read).prefix(),
        Grant::new(NAME, TransactionalId, TRANSACTIONS, Write).prefix(),
    ]
};

const fn compacted(name: &'static str) -> InternalTopic {
    InternalTopic { name, settings: &[("cleanup.policy", "compact")] }
}
