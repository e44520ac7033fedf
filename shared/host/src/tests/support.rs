//! What several of these tests need: timeouts, reading a topic, a loop that runs as in a service, and a
//! mock broker.

use std::collections::HashMap;

use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;

use super::*;

/// Timeout of every event that a test expects.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(60);

/// For how long a test checks that something does not happen.
pub const QUIET_PERIOD: Duration = Duration::from_millis(1500);

pub fn event_id_header(id: &str) -> OwnedHeaders {
    OwnedHeaders::new().insert(Header { key: "ce_id", value: Some(id) })
}

pub fn header<'a>(record: &'a OwnedMessage, key: &str) -> Option<&'a str> {
    let header = record.headers()?.iter().find(|header| header.key == key)?;
    Some(std::str::from_utf8(header.value?).unwrap())
}

pub fn read_topic(client: &BaseConsumer, topic: &str) -> anyhow::Result<Vec<OwnedMessage>> {
    let mut partitions = TopicPartitionList::new();
    let (mut records, mut expected) = (Vec::new(), 0);
    let metadata = client.fetch_metadata(Some(topic), TEST_TIMEOUT)?;
    for partition in metadata.topics()[0].partitions() {
        let (low, high) = client.fetch_watermarks(topic, partition.id(), TEST_TIMEOUT)?;
        partitions.add_partition_offset(topic, partition.id(), Offset::Beginning)?;
        expected += (high - low) as usize;
    }
    client.assign(&partitions)?;
    let deadline = Instant::now() + TEST_TIMEOUT;
    while records.len() < expected {
        ensure!(Instant::now() < deadline, "a record is missing");
        match client.poll(Duration::from_secs(1)) {
            Some(Ok(record)) => records.push(record.detach()),
            // The client reconnects by itself.
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AllBrokersDown))) | None => {}
            Some(Err(error)) => return Err(error.into()),
        }
    }
    Ok(records)
}

/// Polls until a condition holds, up to a deadline.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {TEST_TIMEOUT:?}: {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// A loop that runs as in a service, until it is stopped or dropped.
pub struct RunningLoop {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl RunningLoop {
    pub fn start<F>(run: impl FnOnce(CancellationToken) -> F) -> RunningLoop
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        RunningLoop { task: tokio::spawn(run(stop.clone())), stop }
    }

    pub async fn stop(mut self) {
        self.stop.cancel();
        (&mut self.task).await.unwrap().unwrap();
    }
}

impl Drop for RunningLoop {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub fn status(answer: &Result<Reply, Problem>) -> StatusCode {
    use axum::response::IntoResponse;
    match answer {
        Ok(_) => StatusCode::CREATED,
        Err(problem) => problem.clone().into_response().status(),
    }
}

pub type MockKafka = MockCluster<'static, DefaultProducerContext>;

/// The same service with a mock broker that can be made to fail in place of Kafka.
pub async fn with_mock_kafka<const TEST: u32>(
    fixture: &Fixture<TEST>,
) -> (Fixture<TEST>, MockKafka) {
    let topic = names(TEST).counted;
    fixture.register_schema(topic, topic.schema).await;
    let mock = MockCluster::new(1).unwrap();
    mock.create_topic(topic.name, topic.partitions, 1).unwrap();
    let there = mock.bootstrap_servers();
    (fixture.with_config(|config| config.kafka.kafka_bootstrap_servers = there), mock)
}

/// The first arrival of each event at the broker, in order, by till.
pub async fn first_arrivals<const TEST: u32>(fixture: &Fixture<TEST>) -> HashMap<String, Vec<i64>> {
    let mut seen = BTreeSet::new();
    let mut arrivals: HashMap<String, Vec<i64>> = HashMap::new();
    for (event_id, till, amount) in fixture.published().await {
        if seen.insert(event_id) {
            arrivals.entry(till).or_default().push(amount);
        }
    }
    arrivals
}

/// Whether each till's amounts are 1, 2, 3 … without a gap.
pub fn in_order(arrivals: &HashMap<String, Vec<i64>>) -> bool {
    arrivals.values().all(|amounts| amounts.iter().copied().eq(1..=amounts.len() as i64))
}
