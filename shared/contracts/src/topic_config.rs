//! The settings of a declared topic, by Kafka's names, and the topics as objects of Strimzi.

use chassis::event::{Retention, Topic};
use chassis::kafka::RECORD_BYTES_MAX;

use crate::Contracts;

const HEAD: &str = "\
# Written by `contracts topics` from the declarations of events. `make schema` rewrites it. Strimzi and the contracts
# Job both create the topics, and the second one finds them as it needs them.
";

/// How many brokers of a production cluster have a topic.
const REPLICAS: i32 = 3;

impl Contracts {
    /// One `KafkaTopic` of Strimzi for each topic.
    pub(crate) fn kafka_topics(&self) -> String {
        let object = |topic: &&Topic| {
            let settings = topic_config(topic, Some(REPLICAS)).into_iter();
            let settings = settings.map(|(name, value)| format!("{name}: {value}"));
            let (name, partitions) = (topic.name, topic.partitions);
            format!(
                "apiVersion: kafka.strimzi.io/v1\n\
                 kind: KafkaTopic\n\
                 metadata: {{ name: {name}, labels: {{ strimzi.io/cluster: kafka }} }}\n\
                 spec: {{ partitions: {partitions}, replicas: {REPLICAS}, config: {{ {} }} }}\n",
                settings.collect::<Vec<_>>().join(", ")
            )
        };
        HEAD.to_owned() + &self.topics.iter().map(object).collect::<Vec<_>>().join("---\n")
    }
}

/// Kafka's `cleanup.policy`.
pub fn cleanup_policy(retention: Retention) -> &'static str {
    match retention {
        Retention::Compact => "compact",
        Retention::Days(_) => "delete",
    }
}

/// Kafka's `retention.ms`, unless the topic keeps the newest record of each key for ever.
pub fn retention_ms(retention: Retention) -> Option<i64> {
    match retention {
        Retention::Compact => None,
        Retention::Days(days) => Some(i64::from(days) * 86_400_000),
    }
}

/// All settings of a topic that has this number of replicas.
pub fn topic_config(topic: &Topic, replication: Option<i32>) -> Vec<(&'static str, String)> {
    // A producer's wrong clock must not change how long records are kept.
    let mut settings = vec![
        ("message.timestamp.type", "LogAppendTime".to_string()),
        // A larger record is no event, and each subscriber would keep it as a dead letter.
        ("max.message.bytes", RECORD_BYTES_MAX.to_string()),
        // A broker compares that limit with a batch as it is stored. A batch that it stores as it came may be a
        // thousand times larger where it is read (docs/decisions/0045).
        ("compression.type", "uncompressed".to_string()),
    ];
    if let Some(replication) = replication {
        // With three replicas, one broker may be down, and no acknowledged record is on one disk
        // only.
        let in_sync = if replication >= 3 { "2" } else { "1" };
        settings.push(("min.insync.replicas", in_sync.to_string()));
    }
    settings.push(("cleanup.policy", cleanup_policy(topic.retention).to_string()));
    let retention_ms = retention_ms(topic.retention);
    settings.extend(retention_ms.map(|ms| ("retention.ms", ms.to_string())));
    settings
}
