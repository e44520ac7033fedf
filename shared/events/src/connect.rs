//! The worker of Kafka Connect, which may carry the outboxes of the services in place of their relays, and may write the
//! reporting database: its topics and its rights.

use std::collections::BTreeSet;

use chassis::{Event, Topic};
use contracts::InternalTopic;
use contracts::grants::AclOperation::{DescribeConfigs, Read, Write};
use contracts::grants::AclResource::{self, Group, TransactionalId};
use contracts::grants::{Feature, Grant};

use crate::insights::{ItemSales, OrderOutcomes};
use crate::orders::OrderConfirmed;
use crate::{saga_topics, shipments};

/// Its name: that of its user and of its group.
pub const NAME: &str = "connect";

/// The transaction in which the leader of the workers writes settings: Kafka Connect names it after the group.
const LEADER_TRANSACTION: &str = "connect-cluster-connect";

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

/// The worker, the connectors of the outboxes, and those of the reporting database. Each connector is a user of its own
/// with its name, and none can do what another one may.
pub static FEATURES: [Feature; 3] = [
    Feature { name: NAME, grants: worker },
    Feature { name: "cdc", grants: outboxes },
    Feature { name: "reporting", grants: reports },
];

/// The worker keeps its own topics, and touches no other one.
fn worker() -> Vec<Grant> {
    let mut grants = vec![
        Grant::new(NAME, Group, NAME, Read),
        Grant::new(NAME, TransactionalId, LEADER_TRANSACTION, Write),
    ];
    for topic in [CONFIGS, OFFSETS, STATUSES] {
        // It does not start if one of them is not compacted.
        let operations = [Read, Write, DescribeConfigs];
        grants.extend(operations.map(|it| Grant::new(NAME, AclResource::Topic, topic, it)));
    }
    grants
}

/// Each publishes what its service publishes, with its position in the same transaction.
fn outboxes() -> Vec<Grant> {
    // The optional service has a relay always.
    let services = saga_topics().iter().map(|topic| topic.publisher);
    let services: BTreeSet<&str> = services.filter(|service| *service != shipments::NAME).collect();
    services.into_iter().flat_map(outbox).collect()
}

fn outbox(service: &str) -> Vec<Grant> {
    let user = format!("{service}-outbox");
    let on = |name: &str, operation| Grant::from_names(&user, AclResource::Topic, name, operation);
    let published = saga_topics().iter().filter(|topic| topic.publisher == service);
    let written = published.map(|topic| topic.name).chain([HEARTBEATS.name]);
    let mut grants: Vec<Grant> = written.map(|topic| on(topic, Write)).collect();
    grants.extend([Read, Write, DescribeConfigs].map(|operation| on(OFFSETS, operation)));
    let transactions = format!("{NAME}-{user}-");
    grants.push(Grant::from_names(&user, TransactionalId, &transactions, Write).prefix());
    grants
}

/// The connectors of the reporting database. Each reads its topic, as the group that Kafka Connect names after it, and
/// sets aside what it cannot write.
fn reports() -> Vec<Grant> {
    let connectors = [
        ("reporting-orders", OrderConfirmed::topic()),
        ("reporting-sales", ItemSales::topic()),
        ("reporting-outcomes", OrderOutcomes::topic()),
    ];
    let of_connector = |(user, topic): (&'static str, &'static Topic)| {
        [
            Grant::new(user, AclResource::Topic, topic.name, Read),
            Grant::new(user, AclResource::Topic, DEAD_LETTERS.name, Write),
            Grant::from_names(user, Group, &format!("{NAME}-{user}"), Read),
        ]
    };
    connectors.into_iter().flat_map(of_connector).collect()
}

const fn compacted(name: &'static str) -> InternalTopic {
    InternalTopic { name, settings: &[("cleanup.policy", "compact")] }
}
