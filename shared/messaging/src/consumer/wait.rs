//! How the consumer waits between two attempts: its heartbeat beats, and a stop ends the wait.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::db;
use crate::flow::backoff::RetryBackoff;
use crate::flow::heartbeat::Heartbeat;
use crate::flow::wakeups::Wakeups;

/// The pauses between two attempts.
const ATTEMPT_BACKOFF: RetryBackoff =
    RetryBackoff { delay_min: Duration::from_millis(100), delay_max: Duration::from_secs(5) };

/// Timeout of one attempt. It is much longer than those of its statements, so that it ends only an attempt
/// whose connection has lost its peer.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);

/// The waits of one consumer.
pub struct LoopWait<'a> {
    pub heartbeat: &'a Heartbeat,
    pub wakeups: &'a Wakeups,
    pub stop: &'a CancellationToken,
}

impl LoopWait<'_> {
    /// Waits after a failed attempt; `failures` counts those in a row. An error means that the consumer is stopped.
    pub async fn back_off(&self, failures: &mut u32) -> Result<(), ()> {
        *failures += 1;
        self.sleep(ATTEMPT_BACKOFF.pause_after(*failures)).await
    }

    /// Waits for this time. An error means that the consumer is stopped.
    pub async fn sleep(&self, duration: Duration) -> Result<(), ()> {
        self.heartbeat.beat();
        // A consumer that waits is not behind: commands need not yield to it.
        self.wakeups.consumer_backpressure.report_busy(false);
        self.stop.run_until_cancelled(tokio::time::sleep(duration)).await.ok_or(())
    }
}

/// Ends a query that gets no response with an error.
pub(super) async fn with_attempt_timeout<T>(
    answer: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    db::with_timeout(ATTEMPT_TIMEOUT, answer).await
}
