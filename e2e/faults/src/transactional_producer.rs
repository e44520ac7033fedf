//! A producer that writes in transactions, and leaves one open.

use std::time::Duration;

use anyhow::Result;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use uuid::Uuid;

const KAFKA_TIMEOUT: Duration = Duration::from_secs(30);

/// The transaction timeout: the largest that the broker accepts.
const TRANSACTION_TIMEOUT_MS: &str = "900000";

/// A client with its own transactional id. An open transaction is aborted when it is dropped. Each
/// call blocks until Kafka has responded.
pub struct TransactionalProducer {
    producer: BaseProducer,
    /// The key of every record.
    key: &'static str,
    is_open: bool,
}

impl TransactionalProducer {
    /// Connects, and registers the id. Every record has this key.
    ///
    /// # Errors
    /// If Kafka does not respond within 30 seconds; this holds for every call.
    pub fn new(kafka: &ClientConfig, key: &'static str) -> Result<TransactionalProducer> {
        let producer: BaseProducer = kafka
            .clone()
            .set("transactional.id", Uuid::now_v7().to_string())
            .set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS)
            .create()?;
        producer.init_transactions(KAFKA_TIMEOUT)?;
        Ok(TransactionalProducer { producer, key, is_open: false })
    }

    /// Begins a transaction with one record in each of these partitions, and leaves it open. The
    /// records are not events.
    pub fn leave_open(&mut self, topic: &str, partitions: impl Iterator<Item = i32>) -> Result<()> {
        self.producer.begin_transaction()?;
        self.is_open = true;
        for partition in partitions {
            let record = BaseRecord::to(topic).partition(partition).key(self.key);
            self.producer.send(record.payload(b"\x01x")).map_err(|(error, _)| error)?;
        }
        Ok(self.producer.flush(KAFKA_TIMEOUT)?)
    }

    /// Aborts the open transaction.
    pub fn abort(&mut self) -> Result<()> {
        self.is_open = false;
        Ok(self.producer.abort_transaction(KAFKA_TIMEOUT)?)
    }
}

impl Drop for TransactionalProducer {
    fn drop(&mut self) {
        if self.is_open {
            let _ = self.producer.abort_transaction(KAFKA_TIMEOUT);
        }
    }
}
