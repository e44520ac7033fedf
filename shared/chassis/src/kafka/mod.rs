//! The clients of Kafka and of the schema registry: the settings of every client with their reasons, the detection
//! of clients that must be replaced, records, and schemas.
//!
//! Promise: nothing that the broker acknowledged is lost, and the records of one key keep their order. A client
//! with settings of its own breaks that promise; so `producer_config` and `consumer_config` make the
//! settings of all clients.

pub(crate) mod client_health;
pub mod compacted_topic;
mod known_schemas;
pub(crate) mod record;
mod registered_ids;
mod schema_cache;
mod schema_references;
pub(crate) mod schema_registry;
mod schema_registry_error;
pub(crate) mod writer_schemas;

use std::sync::Arc;
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::{Client, DefaultClientContext};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::producer::{BaseProducer, Producer as _};
use rdkafka::types::RDKafkaType;
use tokio::sync::oneshot;

use crate::config::env::BadConfiguration;
use crate::config::{KafkaConfig, Secret};
use crate::event::Isolation;
use crate::event::avro::BODY_BYTES_MAX;
use crate::flow::backoff::RetryBackoff;

/// The largest record that a topic accepts, and the largest batch of records: the largest body, with room for its
/// key, its headers and Kafka's own fields.
pub const RECORD_BYTES_MAX: usize = BODY_BYTES_MAX + 16 * 1024;

/// How long [`try_login`] waits for an answer.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The settings that are passed on as they are, under librdkafka's names: KAFKA_SECURITY_PROTOCOL is
/// `security.protocol`.
fn passthrough_settings(config: &KafkaConfig) -> [(&'static str, Option<&str>); 7] {
    [
        ("security.protocol", config.kafka_security_protocol.as_deref()),
        ("sasl.mechanism", config.kafka_sasl_mechanism.as_deref()),
        ("sasl.username", config.kafka_sasl_username.as_deref()),
        ("sasl.password", config.kafka_sasl_password.as_ref().map(Secret::expose)),
        ("ssl.ca.location", config.kafka_ssl_ca_location.as_deref()),
        ("ssl.certificate.location", config.kafka_ssl_certificate_location.as_deref()),
        ("ssl.key.location", config.kafka_ssl_key_location.as_deref()),
    ]
}

/// What producer, consumer and the command that applies contracts share.
pub fn client_config(service: &str, config: &KafkaConfig) -> ClientConfig {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.kafka_bootstrap_servers)
        .set("client.id", service)
        .set("socket.keepalive.enable", "true")
        // The client detects a topic that is created or recreated within ten seconds, not five minutes.
        .set("topic.metadata.refresh.interval.ms", "10000")
        .set("reconnect.backoff.max.ms", "2000")
        .set_log_level(RDKafkaLogLevel::Warning);
    for (setting, value) in passthrough_settings(config) {
        if let Some(value) = value {
            client.set(setting, value);
        }
    }
    client
}

/// Creates a client with these settings and closes it, without waiting for any broker.
///
/// # Errors
/// If no client can ever be created with them, for example because a file is no certificate, or a key belongs to
/// another one.
pub fn validate(config: &KafkaConfig) -> Result<(), BadConfiguration> {
    config.check_key()?;
    let settings = client_config("check", config);
    let made = settings.create_native_config().and_then(|native| {
        Client::new(&settings, native, RDKafkaType::RD_KAFKA_PRODUCER, DefaultClientContext)
    });
    let client = made.map_err(|error| {
        let why = error.to_string();
        let names = passthrough_settings(config).map(|(name, _)| name);
        let cause = names.into_iter().find(|name| why.contains(name));
        let cause = cause.unwrap_or("security.protocol").replace('.', "_").to_uppercase();
        BadConfiguration::new(format!("KAFKA_{cause} cannot be used: {why}."))
    })?;
    drop(close_in_background(Arc::new(client)));
    Ok(())
}

/// Fails if Kafka refuses a client with these settings, or does not answer in time.
pub(crate) async fn try_login(config: &KafkaConfig) -> anyhow::Result<()> {
    config.check_key()?;
    let mut settings = client_config("check", config);
    settings.set_log_level(RDKafkaLogLevel::Emerg);
    let client: Arc<BaseProducer> = Arc::new(settings.create()?);
    let asked = client.clone();
    let ask = move || asked.client().fetch_metadata(None, LOGIN_TIMEOUT);
    let answer = tokio::task::spawn_blocking(ask).await;
    drop(close_in_background(client));
    answer??;
    Ok(())
}

/// How soon [`close_in_background`] checks again whether another handle of the client exists. A call that hangs in
/// the client keeps its handle for ever.
const CLOSE_BACKOFF: RetryBackoff =
    RetryBackoff { delay_min: Duration::from_millis(10), delay_max: Duration::from_secs(10) };

/// Drops a client on a separate thread once no other handle of it exists; the receiver resolves when that is
/// done. The drop waits for the client's own threads, and hangs for ever if the client is broken: on a thread of
/// the runtime it would keep the runtime from ending.
pub(crate) fn close_in_background<T: Send + Sync + 'static>(
    client: Arc<T>,
) -> oneshot::Receiver<()> {
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
pub(crate) fn producer_config(service: &str, config: &KafkaConfig) -> ClientConfig {
    let mut producer = client_config(service, config);
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
pub(crate) fn consumer_config(
    service: &str,
    config: &KafkaConfig,
    isolation: Isolation,
) -> ClientConfig {
    let mut consumer = client_config(service, config);
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
    use crate::config::Config;
    use crate::config::env::read_from;

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

    /// A readable file that is no certificate.
    const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");

    /// librdkafka itself reports such files only when a client is made.
    #[test]
    fn files_of_which_no_client_can_be_made_are_refused_by_name() {
        let config = |changes: &[(&str, &str)]| -> KafkaConfig {
            let required = [
                ("DATABASE_URL", "postgres://till@127.0.0.1/till"),
                ("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:9092"),
                ("SCHEMA_REGISTRY_URL", "http://127.0.0.1:8081"),
            ];
            let config: Config = read_from(|name| {
                let chosen = changes.iter().chain(&required).find(|(key, _)| *key == name)?;
                Some(chosen.1.to_owned())
            })
            .unwrap();
            config.kafka.check().unwrap();
            config.kafka
        };
        let tls = [("KAFKA_SECURITY_PROTOCOL", "ssl"), ("KAFKA_SSL_CA_LOCATION", FILE)];
        let message = validate(&config(&tls)).unwrap_err().to_string();
        assert!(message.starts_with("KAFKA_SSL_CA_LOCATION "), "{message}");
        validate(&config(&[])).unwrap();
        let scram = [
            ("KAFKA_SECURITY_PROTOCOL", "SASL_PLAINTEXT"),
            ("KAFKA_SASL_MECHANISM", "scram-sha-256"),
            ("KAFKA_SASL_USERNAME", "till"),
            ("KAFKA_SASL_PASSWORD", "hunter2"),
        ];
        validate(&config(&scram)).unwrap();
    }
}
