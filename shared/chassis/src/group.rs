//! This service's consumer group: reading ahead of the handlers, and what the group knows of itself.
//!
//! Promise: as long as the process lives it keeps its partitions, however long its own database is
//! away. It is broken by not polling while there is no room.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use metrics::gauge;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{Consumer as _, ConsumerContext, StreamConsumer};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::OwnedMessage;
use rdkafka::statistics::Statistics;
use rdkafka::{ClientContext, Offset, TopicPartitionList};
use tokio::sync::{OnceCell, mpsc};
use tracing::warn;

use crate::kafka::Sayings;

/// After so long without room for another record, fetching is paused and the group is kept.
const FULL_FOR_MAX: Duration = Duration::from_secs(10);

/// How long a poll for the group's sake takes.
const POLL: Duration = Duration::from_millis(100);

/// How often the same reason for waiting is said.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// How long a question to the cluster may take.
const ASKED_WITHIN: Duration = Duration::from_secs(5);

/// The consumer group of a service, as far as others in the process need to know.
#[derive(Clone, Default)]
pub struct Group {
    client: Arc<OnceCell<Weak<StreamConsumer<Reports>>>>,
    cluster: Arc<OnceCell<String>>,
}

impl Group {
    pub(crate) fn joined_by(&self, client: &Arc<StreamConsumer<Reports>>) {
        let _ = self.client.set(Arc::downgrade(client));
    }

    /// The id of the cluster, asked for once; `None` while it can't be told.
    pub(crate) async fn cluster(&self, client: &Arc<StreamConsumer<Reports>>) -> Option<String> {
        let client = client.clone();
        let id = self.cluster.get_or_try_init(async || {
            let asked = move || client.client().fetch_cluster_id(ASKED_WITHIN);
            tokio::task::spawn_blocking(asked).await.ok().flatten().ok_or(())
        });
        id.await.ok().cloned()
    }

    /// Whether the group has handled everything that its topics hold: all instances, all
    /// partitions. False where that can't be told.
    pub async fn caught_up(&self) -> bool {
        let Some(client) = self.client.get().and_then(Weak::upgrade) else { return false };
        let asked = move || caught_up(&client).unwrap_or(false);
        tokio::task::spawn_blocking(asked).await.unwrap_or(false)
    }
}

fn caught_up(client: &StreamConsumer<Reports>) -> KafkaResult<bool> {
    let subscribed = client.subscription()?;
    let mut all = TopicPartitionList::new();
    for topic in subscribed.elements() {
        let metadata = client.fetch_metadata(Some(topic.topic()), ASKED_WITHIN)?;
        let partitions = metadata.topics().iter().flat_map(|topic| topic.partitions());
        for partition in partitions {
            all.add_partition(topic.topic(), partition.id());
        }
    }
    if all.count() == 0 {
        return Ok(false);
    }
    for place in client.committed_offsets(all, ASKED_WITHIN)?.elements() {
        let (low, high) =
            client.fetch_watermarks(place.topic(), place.partition(), ASKED_WITHIN)?;
        let caught_up = match place.offset() {
            Offset::Offset(next) => next >= high,
            _ => low == high,
        };
        if !caught_up {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What the client tells about itself, as metrics and log lines.
#[derive(Default)]
pub struct Reports(Sayings);

impl ClientContext for Reports {
    fn log(&self, level: RDKafkaLogLevel, kind: &str, text: &str) {
        self.0.say(level, kind, text);
    }

    fn error(&self, error: KafkaError, text: &str) {
        self.0.say(RDKafkaLogLevel::Error, &error.to_string(), text);
    }

    fn stats(&self, statistics: Statistics) {
        for topic in statistics.topics.values() {
            let partitions = topic.partitions.values();
            let lag: i64 = partitions.map(|partition| partition.consumer_lag_stored.max(0)).sum();
            gauge!("consumer_lag", "topic" => topic.topic.clone()).set(lag as f64);
        }
    }
}

impl ConsumerContext for Reports {}

/// Reads ahead, up to a bound. Where there is no room for long, fetching is paused and the group
/// goes on being polled: an outage of our database must not cost us our partitions.
pub(crate) async fn read(client: Arc<StreamConsumer<Reports>>, ahead: mpsc::Sender<OwnedMessage>) {
    let mut spare = VecDeque::new();
    let mut paused = false;
    let mut said = (String::new(), Instant::now());
    loop {
        let room = match tokio::time::timeout(FULL_FOR_MAX, ahead.reserve()).await {
            Ok(Ok(room)) => room,
            Ok(Err(_)) => return,
            Err(_) => {
                if let Ok(assigned) = client.assignment() {
                    paused = client.pause(&assigned).is_ok();
                }
                if let Ok(Ok(message)) = tokio::time::timeout(POLL, client.recv()).await {
                    spare.push_back(message.detach());
                }
                continue;
            }
        };
        if paused && let Ok(assigned) = client.assignment() {
            paused = client.resume(&assigned).is_err();
        }
        if let Some(message) = spare.pop_front() {
            room.send(message);
            continue;
        }
        match client.recv().await {
            Ok(message) => room.send(message.detach()),
            Err(error) => {
                // The client goes on by itself; one line says what it is waiting for.
                let text = error.to_string();
                if said.0 != text || said.1.elapsed() > SAID_EVERY {
                    warn!("reading waits: {text}");
                    said = (text, Instant::now());
                }
            }
        }
    }
}
