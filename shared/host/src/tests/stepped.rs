//! A consumer and a sender that take the steps which a test asks for, instead of running as loops.

use std::ops::{Deref, DerefMut};

use messaging::consumer::batch::BatchRunner;
use messaging::outbox::sender::OutboxSender;
use sqlx::Postgres;
use sqlx::pool::PoolConnection;

use super::*;

/// A consumer that handles the batches that a test gives it.
pub struct SteppedConsumer<R: UnitOfWork = Tills> {
    pub consumer: Consumer<R>,
    pub client: Arc<StreamConsumer<GroupContext>>,
    pub stop: CancellationToken,
}

impl<R: UnitOfWork> SteppedConsumer<R> {
    pub fn new(
        consumer: Consumer<R>,
        client: Arc<StreamConsumer<GroupContext>>,
    ) -> SteppedConsumer<R> {
        SteppedConsumer { consumer, client, stop: CancellationToken::new() }
    }

    pub fn batches(&self) -> BatchRunner<'_, R> {
        BatchRunner::new(&self.consumer.resources, &self.client, &self.stop)
    }

    /// Handles a batch, and retries until no event of it is deferred.
    pub async fn handle(&self, batch: Vec<OwnedMessage>) {
        let mut batches = self.batches();
        batches.handle(batch, &self.client.context().assignment()).await;
        while let Some(due_at) = batches.next_due() {
            tokio::time::sleep_until(due_at).await;
            batches.retry_deferred().await;
        }
    }
}

/// The relay's sender, which takes the steps that a test asks for.
pub(crate) struct SteppedSender {
    sender: OutboxSender<'static>,
    db: PoolConnection<Postgres>,
}

impl SteppedSender {
    pub fn new(sender: OutboxSender<'static>, db: PoolConnection<Postgres>) -> SteppedSender {
        SteppedSender { sender, db }
    }

    /// Sends up to this many rows, and returns how many.
    pub async fn send(&mut self, limit: usize) -> usize {
        self.try_send(limit).await.unwrap()
    }

    pub async fn try_send(&mut self, limit: usize) -> anyhow::Result<usize> {
        self.sender.send_batch(&mut self.db, limit).await
    }

    pub async fn measure_lag(&mut self) {
        self.sender.lag.measure(&mut self.db).await.unwrap();
    }

    /// Waits for the next delivery report and handles it. Returns the position of its row.
    pub async fn next_delivery(&mut self) -> i64 {
        let report = self.sender.producer.next_report().await.unwrap();
        let position = report.0.position;
        self.sender.on_delivery(report).unwrap();
        position
    }
}

impl Deref for SteppedSender {
    type Target = OutboxSender<'static>;

    fn deref(&self) -> &OutboxSender<'static> {
        &self.sender
    }
}

impl DerefMut for SteppedSender {
    fn deref_mut(&mut self) -> &mut OutboxSender<'static> {
        &mut self.sender
    }
}
