//! How this service talks to Kafka: every setting that a promise depends on, with its reason.

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::types::RDKafkaType;
use tokio::sync::oneshot;

use crate::config::{Kafka, Secret};
use crate::environment::BadConfiguration;
use crate::event::Isolation;

/// The settings that are passed on as they are, under librdkafka's names: KAFKA_SECURITY_PROTOCOL is
/// `security.protocol`.
const PASSED_ON: [&str; 7] = [
    "security.protocol",
    "sasl.mechanism",
    "sasl.username",
    "sasl.password",
    "ssl.ca.location",
    "ssl.certificate.location",
    "ssl.key.location",
];

/// What producer, consumer and the command that applies contracts share.
pub fn client(service: &str, config: &Kafka) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.kafka_bootstrap_servers)
        .set("client.id", service)
        .set("socket.keepalive.enable", "true")
        // A topic that is made or made anew while we run is seen within ten seconds, not five
        // minutes.
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("reconnect.backoff.max.ms", "2000")
        .set_log_level(RDKafkaLogLevel::Warning);
    let values = [
        config.kafka_security_protocol.as_deref(),
        config.kafka_sasl_mechanism.as_deref(),
        config.kafka_sasl_username.as_deref(),
        config.kafka_sasl_password.as_ref().map(Secret::expose),
        config.kafka_ssl_ca_location.as_deref(),
        config.kafka_ssl_certificate_location.as_deref(),
        config.kafka_ssl_key_location.as_deref(),
    ];
    for (setting, value) in PASSED_ON.into_iter().zip(values) {
        if let Some(value) = value {
            client.set(setting, value);
        }
    }
    client
}

/// Makes a client of these settings and drops it again, without waiting for any broker.
///
/// # Errors
/// If no client can ever be made of them: a certificate that is none, a key that belongs to another one.
pub fn check(config: &Kafka) -> Result<(), BadConfiguration> {
    let settings = client("check", config);
    let made = settings.create_native_config().and_then(|native| {
        Client::new(&settings, native, RDKafkaType::RD_KAFKA_PRODUCER, DefaultClientContext)
    });
    match made {
        Ok(client) => {
            drop(closed(Arc::new(client)));
            Ok(())
        }
        Err(error) => {
            let why = error.to_string();
            let cause = PASSED_ON.iter().find(|setting| why.contains(**setting));
            let cause = cause.copied().unwrap_or("security.protocol");
            let name = format!("KAFKA_{}", cause.replace('.', "_").to_uppercase());
            Err(BadConfiguration::new(format!("{name} cannot be used: {why}.")))
        }
    }
}

/// How soon [`closed`] looks again whether anybody else still has a handle of the client; twice as
/// long after each look. A call that hangs in the client keeps its handle for ever.
const FREE_AFTER: Duration = Duration::from_millis(10);

/// Between two such looks, at most.
const FREE_AFTER_MAX: Duration = Duration::from_secs(10);

/// Drops a client on a thread of its own, once nobody else has a handle of it, and tells when that is done.
/// The drop waits for the client's own threads, and hangs for ever where the client is beyond repair: on one
/// of the runtime's threads it would keep the runtime from ending.
pub(crate) fn closed<T: Send + Sync + 'static>(client: Arc<T>) -> oneshot::Receiver<()> {
    let (done, closed) = oneshot::channel();
    std::thread::spawn(move || {
        let (mut client, mut wait) = (Arc::try_unwrap(client), FREE_AFTER);
        while let Err(shared) = client {
            std::thread::sleep(wait);
            wait = (wait * 2).min(FREE_AFTER_MAX);
            client = Arc::try_unwrap(shared);
        }
        drop(client);
        let _ = done.send(());
    });
    closed
}

/// The relay's producer.
pub fn producer(service: &str, config: &Kafka) -> ClientConfig {
    let mut producer = client(service, config);
    producer
        // Acknowledged means: by every replica in sync.
        .set("acks", "all")
        // A retry inside the client is written once and in order; what it only supposes to be written is
        // not taken for that ([`crate::producer`]).
        .set("enable.idempotence", "true")
        // Never given up: a record that is given up leaves a gap that a later one would overtake.
        // Where a producer is given up, its rows are still there for the next one.
        .set("message.timeout.ms", "0")
        // The same key goes to the same partition as from a Java client; librdkafka's own default
        // differs for most keys.
        .set("partitioner", "murmur2_random")
        .set("allow.auto.create.topics", "false")
        // How long a topic may be unknown before its records come back as undeliverable.
        .set("topic.metadata.propagation.max.ms", "5000")
        // The relay hands over what is waiting at once, and rests itself where that pays: to wait here
        // too would only add latency.
        .set("linger.ms", "0")
        // What is in flight is bounded by its number, and by its size: a row may have 256 KiB.
        .set("queue.buffering.max.kbytes", "16384")
        .set("compression.type", "lz4")
        // Whether it knows of a broker still; see `Sayings::counted`.
        .set("statistics.interval.ms", "10000");
    producer
}

/// A consumer of this service's group, for topics of one isolation: it is a setting of the client.
pub fn consumer(service: &str, config: &Kafka, isolation: Isolation) -> ClientConfig {
    let mut consumer = client(service, config);
    consumer
        .set("group.id", service)
        // Offsets are stored by us (see `crate::offsets`), after the commit of what was handled; the client
        // commits what is stored once a second, when partitions move, and at the end.
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        // A group that is new, or whose offsets were lost, starts with the oldest record; the
        // inbox absorbs the repeats. The client's default would skip everything.
        .set("auto.offset.reset", "earliest")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // A killed instance's partitions move within ten seconds. Those of one that comes or goes move
        // when all have heard of it, by their next heartbeat.
        .set("session.timeout.ms", "10000")
        .set("heartbeat.interval.ms", "1000")
        // When a lone broker comes back that had been taken for dead, it is missing from its own first
        // answers; the client drops it, and what it has for the group's coordinator then waits for as
        // long as this (the default is a minute) before the coordinator is looked for anew.
        .set("socket.timeout.ms", "10000")
        .set("max.poll.interval.ms", "300000")
        .set("isolation.level", level(isolation))
        .set("check.crcs", "true")
        .set("allow.auto.create.topics", "false")
        .set("enable.partition.eof", "false")
        // How far behind each partition is, for the metrics; and whether it knows of a broker still.
        .set("statistics.interval.ms", "10000")
        .set("fetch.error.backoff.ms", "200");
    fetching_little(&mut consumer);
    consumer
}

/// What the client calls an isolation.
pub(crate) fn level(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::ReadUncommitted => "read_uncommitted",
        Isolation::ReadCommitted => "read_committed",
    }
}

/// Bounds the memory of whoever reads. What lies ready counts by its bytes, and each record costs several
/// times its bytes beside them; an answer of the broker's may overshoot by all that it brings. With 8 MiB
/// ready, and answers of the default 50 MiB, a service that had 120,000 records to catch up with grew to
/// 140 to 175 MB; so it grows to 60 to 80, and is as fast. A record larger than a partition's share still
/// comes whole.
pub fn fetching_little(client: &mut ClientConfig) {
    client
        .set("queued.max.messages.kbytes", "1024")
        .set("fetch.max.bytes", "1000000")
        .set("max.partition.fetch.bytes", "65536")
        // Where enough lies ready, so long until there is room again (the default is a second).
        .set("fetch.queue.backoff.ms", "20");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_is_closed_when_nobody_has_it_any_longer() {
        let client = Arc::new(());
        let other = client.clone();
        let mut closed = closed(client);
        tokio::time::sleep(FREE_AFTER * 10).await;
        assert!(closed.try_recv().is_err());
        drop(other);
        closed.await.unwrap();
    }
}
