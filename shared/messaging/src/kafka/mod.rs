//! The clients of Kafka and of the schema registry: the settings of every client with their reasons, the detection
//! of clients that must be replaced, records, and schemas.
//!
//! Promise: nothing that the broker acknowledged is lost, and the records of one key keep their order. A client
//! with settings of its own breaks that promise; so `producer_config` and `consumer_config` make the
//! settings of all clients.

pub(crate) mod client_health;
pub mod compacted_topic;
mod known_schemas;
pub mod record;
mod registered_ids;
mod schema_cache;
mod schema_references;
pub mod schema_registry;
mod schema_registry_error;
pub mod writer_schemas;

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use tokio::sync::oneshot;

use crate::event::Isolation;
use crate::event::avro::BODY_BYTES_MAX;
use crate::flow::backoff::RetryBackoff;

/// The largest record that a topic accepts, and the largest batch of records: the largest body, with room for its
/// key, its headers and Kafka's own fields.
pub const RECORD_BYTES_MAX: usize = BODY_BYTES_MAX + 16 * 1024;

/// What producer, consumer and the command that applies contracts share. `connection` has the brokers, and librdkafka's
/// settings of TLS and SASL.
pub fn client_config(service: &str, connection: &ClientConfig) -> ClientConfig {
    let mut client = connection.clone();
    client
        .set("client.id", service)
        .set("socket.keepalive.enable", "true")
        // The client detects a topic that is created or recreated within ten seconds, not five minutes.
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("reconnect.backoff.max.ms", "2000")
        .set_log_level(RDKafkaLogLevel::Warning);
    client
}

/// How soon [`close_in_background`] checks again whether another handle of the client exists. A call that hangs in
/// the client keeps its handle for ever.
const CLOSE_BACKOFF: RetryBackoff =
    RetryBackoff { delay_min: Duration::from_millis(10), delay_max: Duration::from_secs(10) };

/// Drops a client on a separate thread once no other handle of it exists; the receiver resolves when that is
/// done. The drop waits for the client's own threads, and hangs for ever if the client is broken: on a thread of
/// the runtime it would keep the runtime from ending.
pub fn close_in_background<T: Send + Sync + 'static>(client: Arc<T>) -> oneshot::Receiver<()> {
    let (done, finished) = oneshot::channel();
    std::thread::spawn(move || {
        let (mut client, mut checks) = (Arc::try_unwrap(client), 0);
        while let Err(shared) = client {
            checks += 1;
            std::thread::sleep(CLOSE_BACKOFF.pause_after(checks));
            client = Arc::try_unwrap(shared);
        }
        drop(client);
        let _ = done.send(());
    });
    finished
}

/// The relay's producer.
pub fn producer_config(service: &str, connection: &ClientConfig) -> ClientConfig {
    let mut producer = client_config(service, connection);
    producer
        // Every in-sync replica acknowledges a record.
        .set("acks", "all")
        // A retry inside the client is written once and in order. A record that the client only assumes to be
        // written does not count as written ([`crate::outbox::producer`]).
        .set("enable.idempotence", "true")
        // The client never gives up a record: a later record of its key would overtake it. If the producer is
        // replaced, the next one sends the rows again.
        .set("message.timeout.ms", "0")
        // The same key goes to the same partition as from a Java client; librdkafka's own default
        // differs for most keys.
        .set("partitioner", "murmur2_random")
        .set("allow.auto.create.topics", "false")
        // How long a topic may be unknown before its records are reported as undeliverable.
        .set("topic.metadata.propagation.max.ms", "5000")
        // The relay hands over a batch row by row. Without a wait, the client sends the first row in a request of
        // its own. The client rounds a wait up to whole milliseconds.
        .set("linger.ms", "1")
        // A broker compares a whole batch with the limit of the topic.
        .set("batch.size", RECORD_BYTES_MAX.to_string())
        // Records in flight are bounded by their number, and here by their size: a row may have 256 KiB.
        .set("queue.buffering.max.kbytes", "16384")
        // The topics store no compression, so the broker would only have to undo it (docs/decisions/0045).
        .set("compression.type", "none")
        // For `ClientHealth::on_statistics`.
        .set("statistics.interval.ms", "10000");
    producer
}

/// A consumer of this service's group, for topics of one isolation: it is a setting of the client.
pub fn consumer_config(
    service: &str,
    connection: &ClientConfig,
    isolation: Isolation,
) -> ClientConfig {
    let mut consumer = client_config(service, connection);
    consumer
        .set("group.id", service)
        // The consumer stores offsets itself, after the commit of what was handled (see
        // `crate::consumer::offsets`). The client commits stored offsets once a second, when partitions move, and
        // at the end.
        .set("enable.auto.offset.store", "false")
        .set("enable.auto.commit", "true")
        .set("auto.commit.interval.ms", "1000")
        // A group that is new, or whose offsets were lost, starts with the oldest record; the
        // inbox absorbs the repeats. The client's default would skip everything.
        .set("auto.offset.reset", "earliest")
        .set("partition.assignment.strategy", "cooperative-sticky")
        // The partitions of a killed instance move within ten seconds. When an instance joins or leaves,
        // partitions move once all others know it, by their next heartbeat.
        .set("session.timeout.ms", "10000")
        .set("heartbeat.interval.ms", "1000")
        // A single broker that returns after it was considered dead is missing from its own first answers. The
        // client removes it, and its requests to the group's coordinator wait for this long (the default is a
        // minute) before it searches for the coordinator again.
        .set("socket.timeout.ms", "10000")
        .set("max.poll.interval.ms", "300000")
        .set("isolation.level", isolation_level(isolation))
        .set("check.crcs", "true")
        .set("allow.auto.create.topics", "false")
        .set("enable.partition.eof", "false")
        // For the lag of each partition, and for `ClientHealth::on_statistics`.
        .set("statistics.interval.ms", "10000")
        .set("fetch.error.backoff.ms", "200");
    limit_fetch_memory(&mut consumer);
    consumer
}

/// The name of an isolation in the client's settings.
pub(crate) fn isolation_level(isolation: Isolation) -> &'static str {
    match isolation {
        Isolation::ReadUncommitted => "read_uncommitted",
        Isolation::ReadCommitted => "read_committed",
    }
}

/// Bounds the memory of a consumer. librdkafka counts prefetched records by their bytes, but each costs several
/// times that, and one fetch response may exceed the bound by its whole size. A record larger than a partition's
/// share still arrives whole. `docs/performance.md` has the measurements.
pub(crate) fn limit_fetch_memory(client: &mut ClientConfig) {
    client
        .set("queued.max.messages.kbytes", "1024")
        .set("fetch.max.bytes", "1000000")
        .set("max.partition.fetch.bytes", "65536")
        // With enough records prefetched, the pause until there is room again (the default is a second).
        .set("fetch.queue.backoff.ms", "20");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_client_is_closed_once_its_last_handle_is_dropped() {
        let client = Arc::new(());
        let other = client.clone();
        let mut close = close_in_background(client);
        tokio::time::sleep(CLOSE_BACKOFF.delay_min * 10).await;
        assert!(close.try_recv().is_err());
        drop(other);
        close.await.unwrap();
    }
}
