//! Detects when orders end, from the order service's events in Kafka.
//!
//! An order has ended when its `orders.confirmed` or `orders.cancelled` arrives here. That is later
//! than the commit by the time of the relay and of Kafka. The time of the commit itself comes from
//! Postgres.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use checker::kafka;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;
use uuid::Uuid;

const COMPLETION_TOPICS: [&str; 2] = ["orders.confirmed", "orders.cancelled"];

/// An order that has not ended after this time counts as lost.
pub const COMPLETION_TIMEOUT: Duration = Duration::from_secs(60);

enum Slot {
    /// The end of the order arrived before the response.
    Completed(Instant),
    Waiting(oneshot::Sender<Instant>),
}

#[derive(Default)]
struct CompletionTable {
    slots: Mutex<HashMap<Uuid, Slot>>,
    ended: AtomicU64,
    stopped: AtomicBool,
}

/// Reads the topics for as long as it lives.
pub struct CompletionWatch {
    table: Arc<CompletionTable>,
}

impl CompletionWatch {
    /// Starts at the current end of the topics.
    pub fn start(kafka: &ClientConfig) -> Result<CompletionWatch> {
        let reader = kafka::create_consumer(kafka, "bench")?;
        let mut assignment = TopicPartitionList::new();
        for topic in COMPLETION_TOPICS {
            for (partition, (_, end)) in kafka::watermarks(&reader, topic)?.into_iter().enumerate()
            {
                let partition = i32::try_from(partition)?;
                assignment.add_partition_offset(topic, partition, Offset::Offset(end))?;
            }
        }
        reader.assign(&assignment)?;
        let table = Arc::new(CompletionTable::default());
        let reader_table = table.clone();
        std::thread::Builder::new()
            .name("completions".into())
            .spawn(move || read_completions(&reader, &reader_table))?;
        Ok(CompletionWatch { table })
    }

    /// Waits for the end of an order, and returns its time.
    pub async fn wait_for(&self, order_id: Uuid) -> Result<Instant> {
        let awaited = {
            let mut slots = self.table.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(Slot::Completed(at)) = slots.remove(&order_id) {
                return Ok(at);
            }
            let (sender, awaited) = oneshot::channel();
            slots.insert(order_id, Slot::Waiting(sender));
            awaited
        };
        let ended = tokio::time::timeout(COMPLETION_TIMEOUT, awaited).await;
        let ended = ended.with_context(|| format!("order {order_id} has not ended"))?;
        Ok(ended?)
    }

    /// The number of orders that have ended so far.
    pub fn count(&self) -> u64 {
        self.table.ended.load(Ordering::Relaxed)
    }
}

impl Drop for CompletionWatch {
    fn drop(&mut self) {
        self.table.stopped.store(true, Ordering::Relaxed);
    }
}

fn read_completions(reader: &BaseConsumer, table: &CompletionTable) {
    while !table.stopped.load(Ordering::Relaxed) {
        let Some(Ok(message)) = reader.poll(Duration::from_millis(200)) else { continue };
        table.ended.fetch_add(1, Ordering::Relaxed);
        let key = message.key().and_then(|key| std::str::from_utf8(key).ok());
        let Some(order_id) = key.and_then(|key| Uuid::parse_str(key).ok()) else { continue };
        let at = Instant::now();
        let mut slots = table.slots.lock().unwrap_or_else(PoisonError::into_inner);
        match slots.remove(&order_id) {
            Some(Slot::Waiting(caller)) => drop(caller.send(at)),
            _ => drop(slots.insert(order_id, Slot::Completed(at))),
        }
    }
}
