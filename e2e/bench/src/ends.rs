//! When orders end: read from Kafka, where the order service says so.
//!
//! An order counts as ended when its `orders.confirmed` or `orders.cancelled` has come here, which is
//! later than the decider's commit: by the relay, and by Kafka. The commit itself is asked of Postgres.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use e2e::topics;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use tokio::sync::oneshot;
use uuid::Uuid;

const ENDS: [&str; 2] = ["orders.confirmed", "orders.cancelled"];

/// An order that has not ended by then counts as lost.
pub const ENDED_WITHIN: Duration = Duration::from_secs(60);

enum Slot {
    /// Its end came before its answer.
    Ended(Instant),
    Awaited(oneshot::Sender<Instant>),
}

#[derive(Default)]
struct Board {
    slots: Mutex<HashMap<Uuid, Slot>>,
    confirmed: AtomicU64,
    cancelled: AtomicU64,
    over: AtomicBool,
}

/// Reads along for as long as it lives.
pub struct Ends {
    board: Arc<Board>,
}

impl Ends {
    /// Starts at the present end of the topics.
    pub fn watch(kafka: &str) -> Result<Ends> {
        let reader = topics::reader(kafka, "bench")?;
        let mut places = TopicPartitionList::new();
        for topic in ENDS {
            for (partition, (_, end)) in topics::watermarks(&reader, topic)?.into_iter().enumerate()
            {
                let partition = i32::try_from(partition)?;
                places.add_partition_offset(topic, partition, Offset::Offset(end))?;
            }
        }
        reader.assign(&places)?;
        let board = Arc::new(Board::default());
        let read = board.clone();
        std::thread::Builder::new()
            .name("ends".into())
            .spawn(move || read_along(&reader, &read))?;
        Ok(Ends { board })
    }

    /// Waits for the end of an order; answers when it came.
    pub async fn of(&self, order_id: Uuid) -> Result<Instant> {
        let awaited = {
            let mut slots = self.board.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(Slot::Ended(at)) = slots.remove(&order_id) {
                return Ok(at);
            }
            let (sender, awaited) = oneshot::channel();
            slots.insert(order_id, Slot::Awaited(sender));
            awaited
        };
        let ended = tokio::time::timeout(ENDED_WITHIN, awaited).await;
        let ended = ended.with_context(|| format!("order {order_id} has not ended"))?;
        Ok(ended?)
    }

    /// How many orders were confirmed and cancelled so far.
    pub fn counts(&self) -> (u64, u64) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        (of(&self.board.confirmed), of(&self.board.cancelled))
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.board.over.store(true, Ordering::Relaxed);
    }
}

fn read_along(reader: &BaseConsumer, board: &Board) {
    while !board.over.load(Ordering::Relaxed) {
        let Some(Ok(message)) = reader.poll(Duration::from_millis(200)) else { continue };
        let count = if message.topic() == ENDS[0] { &board.confirmed } else { &board.cancelled };
        count.fetch_add(1, Ordering::Relaxed);
        let key = message.key().and_then(|key| std::str::from_utf8(key).ok());
        let Some(order_id) = key.and_then(|key| Uuid::parse_str(key).ok()) else { continue };
        let at = Instant::now();
        let mut slots = board.slots.lock().unwrap_or_else(PoisonError::into_inner);
        match slots.remove(&order_id) {
            Some(Slot::Awaited(caller)) => drop(caller.send(at)),
            _ => drop(slots.insert(order_id, Slot::Ended(at))),
        }
    }
}
