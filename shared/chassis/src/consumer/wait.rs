//! How the consumer waits between two attempts: it shows that it is alive, and a stop ends the wait.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::db;
use crate::flow::heartbeat::Heartbeat;
use crate::flow::wakeups::Wakeups;

/// The pause before the second attempt.
pub(super) const BACKOFF_MIN: Duration = Duration::from_millis(100);

/// The longest pause between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(5);

/// Timeout of one attempt. It is much longer than those of its statements, so that it ends only an attempt
/// whose connection has lost its peer.
pub(super) const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(20);

/// The waits of one consumer.
pub(crate) struct LoopWait<'a> {
    pub heartbeat: &'a Heartbeat,
    pub wakeups: &'a Wakeups,
    pub stop: &'a CancellationToken,
}

impl LoopWait<'_> {
    /// Waits once: longer each time up to a bound, and shorter by a random part, so that instances do not
    /// retry at the same moment. An error means that the consumer is stopped.
    pub async fn back_off(&self, backoff: &mut Duration) -> Result<(), ()> {
        let wait = backoff.mul_f64(rand::random_range(0.5..1.0));
        *backoff = (*backoff * 2).min(BACKOFF_MAX);
        self.sleep(wait).await
    }

    /// Waits for this time. An error means that the consumer is stopped.
    pub async fn sleep(&self, duration: Duration) -> Result<(), ()> {
        self.heartbeat.beat();
        // A consumer that waits is not behind: commands need not yield to it.
        self.wakeups.consumer_backpressure.report_busy(false);
        tokio::select! {
            () = tokio::time::sleep(duration) => Ok(()),
            () = self.stop.cancelled() => Err(()),
        }
    }
}

/// Ends a query that gets no response with an error.
pub(super) async fn with_attempt_timeout<T>(
    answer: impl Future<Output = sqlx::Result<T>>,
) -> sqlx::Result<T> {
    db::with_timeout(ATTEMPT_TIMEOUT, answer).await
}
