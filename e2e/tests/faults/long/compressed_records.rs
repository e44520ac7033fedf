//! Records that are small where they are written and large where they are read.

use chassis::event::Event;
use chassis::kafka::RECORD_BYTES_MAX;
use e2e::client::sample_events::POISON_KEY;
use events::stock::StockReserved;
use parking_lot::Mutex;
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Message as _};
use std::collections::HashSet;
use std::sync::Arc;

use super::*;

const MIB: usize = 1024 * 1024;

/// Each codec, with the zeros of which a fetch has three records, and those of the largest record that a topic accepts
/// if it counts compressed bytes. A zstd record of 100 MB or more is refused by librdkafka itself.
const CODECS: [(&str, usize, usize); 4] = [
    ("gzip", 60 * MIB, 250 * MIB),
    ("snappy", MIB, 5 * MIB),
    ("lz4", 15 * MIB, 64 * MIB),
    ("zstd", 90 * MIB, 95 * MIB),
];

/// The largest record that a topic accepts, whatever its compression.
const LARGEST_BYTES: usize = RECORD_BYTES_MAX - 1024;

/// A header takes three bytes of a record, and many times as many in the memory of a reader.
const HEADER_COUNT: usize = LARGEST_BYTES / 3;

/// Such records of each partition: several fetches.
const HEADER_RECORDS: usize = 20;

/// A position for each record that Kafka accepted.
#[derive(Clone, Default)]
struct Accepted(Arc<Mutex<Vec<(String, i32, i64)>>>);

impl ClientContext for Accepted {}

impl ProducerContext for Accepted {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Ok(record) = result {
            let position = (record.topic().to_string(), record.partition(), record.offset());
            self.0.lock().push(position);
        }
    }
}

impl Accepted {
    fn positions(&self) -> Vec<(String, i32, i64)> {
        self.0.lock().clone()
    }
}

/// A producer without a limit of its own, which sends each record once.
fn hostile_producer(client: &Client, codec: &str) -> Result<ThreadedProducer<Accepted>> {
    let mut settings = client.addresses.kafka.clone();
    settings
        .set("compression.type", codec)
        .set("message.max.bytes", "1000000000")
        .set("queue.buffering.max.kbytes", "2000000")
        .set("retries", "0");
    Ok(settings.create_with_context(Accepted::default())?)
}

/// The most memory that a service ever had since its start.
async fn peak_memory_bytes(stack: &Stack, service: &str) -> Result<u64> {
    let status = stack.status().await?;
    let component = status.iter().find(|component| component.name == service);
    let pid = component.and_then(|component| component.pid).context("the service runs")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.and_then(|rest| rest.split_whitespace().next()).context("Linux counts it")?;
    Ok(peak.parse::<u64>()? * 1024)
}

/// A service above its memory limit would be killed, would read the record again, and would be killed again.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_record_that_compression_makes_small_is_refused_by_kafka_or_fits_into_the_memory_of_its_readers()
-> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        stack.stop("order").await?;
        let mut accepted = Vec::new();
        for (codec, share_bytes, largest_bytes) in CODECS {
            let producer = hostile_producer(client, codec)?;
            for bytes in [share_bytes, LARGEST_BYTES] {
                for partition in 0..StockReserved::topic().partitions {
                    send_zeros(&producer, bytes, partition)?;
                }
            }
            send_zeros(&producer, largest_bytes, 0)?;
            let codec_accepted = producer.context().positions();
            ensure!(codec_accepted.len() >= 3, "{codec}: Kafka accepted {codec_accepted:?}");
            accepted.extend(codec_accepted);
        }
        accepted.extend(send_headers(client)?);
        stack.start("order").await?;
        confirm_orders(client, 3).await?;
        let peak = wait_for_dead_letters(stack, client, &accepted).await?;
        ensure!(peak <= MEMORY_BYTES_MAX, "order grew to {peak} bytes");
        Ok(())
    })
    .await
}

fn send_zeros(producer: &ThreadedProducer<Accepted>, bytes: usize, partition: i32) -> Result<()> {
    let zeros = vec![0_u8; bytes];
    let record = BaseRecord::to(StockReserved::topic().name)
        .partition(partition)
        .key(POISON_KEY)
        .payload(&zeros);
    producer.send(record).map_err(|(error, _)| error)?;
    Ok(producer.flush(TIMEOUT)?)
}

/// Records of nothing but headers.
fn send_headers(client: &Client) -> Result<Vec<(String, i32, i64)>> {
    let producer = hostile_producer(client, "none")?;
    let empty = || Header { key: "h", value: None::<&[u8]> };
    let headers = (0..HEADER_COUNT)
        .fold(OwnedHeaders::new_with_capacity(HEADER_COUNT), |headers, _| headers.insert(empty()));
    let records = HEADER_RECORDS * usize::try_from(StockReserved::topic().partitions)?;
    for partition in (0..StockReserved::topic().partitions).cycle().take(records) {
        let record =
            BaseRecord::to(StockReserved::topic().name).partition(partition).key(POISON_KEY);
        let record = record.payload(&[]).headers(headers.clone());
        producer.send(record).map_err(|(error, _)| error)?;
        // Two of them in one batch would be larger than a topic accepts.
        producer.flush(TIMEOUT)?;
    }
    let accepted = producer.context().positions();
    ensure!(accepted.len() == records, "Kafka accepted {} of {records}", accepted.len());
    Ok(accepted)
}

/// Waits for a dead letter of order for each of these records, and returns the most memory that it needed.
async fn wait_for_dead_letters(
    stack: &Stack,
    client: &Client,
    records: &[(String, i32, i64)],
) -> Result<u64> {
    eventually("a dead letter for each", DRAIN_TIMEOUT, async || {
        let letters = waiting_dead_letters(client, "order").await?;
        let found: HashSet<(&str, i32, i64)> = letters.iter().map(|l| (&*l.0, l.1, l.2)).collect();
        let missing =
            records.iter().find(|record| !found.contains(&(&*record.0, record.1, record.2)));
        ensure!(missing.is_none(), "none for {missing:?}");
        Ok(())
    })
    .await?;
    peak_memory_bytes(stack, "order").await
}
