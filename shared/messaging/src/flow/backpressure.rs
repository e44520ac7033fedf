//! Backpressure on commands: while a loop of this process has more work than fits a batch, commands take
//! turns with it.
//!
//! Accepting a command is cheaper than completing it. A service that accepts all commands has no time left
//! to complete them, and a backlog grows. Commands that arrive faster than that wait, and they are refused
//! once too many wait or one waits too long. Only batches of this process count: an outage of another
//! service slows nothing down.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// The longest time for which commands yield to a busy loop.
const YIELD_MAX: Duration = Duration::from_millis(200);

/// Whether one loop is behind. The loop reports it, and the command executors read it.
#[derive(Default)]
pub struct Backpressure(watch::Sender<bool>);

impl Backpressure {
    /// Reports the end of a batch; `busy` is whether another full batch may be waiting.
    pub fn report_busy(&self, busy: bool) {
        self.0.send_replace(busy);
    }

    /// Waits until a busy loop has handled a batch, but no longer than [`YIELD_MAX`].
    pub async fn yield_to_busy(&self) {
        let mut turns = self.0.subscribe();
        if *turns.borrow_and_update() {
            let _ = timeout(YIELD_MAX, turns.changed()).await;
        }
    }
}
