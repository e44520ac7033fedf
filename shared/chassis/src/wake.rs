//! Tells the rest of the process that something was committed here, so that it looks sooner than its
//! next poll. Only ever a hint: other replicas commit too, and their commits are found by polling.
//!
//! And tells the writers of commands that a loop is behind.

use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::timeout;

/// How long commands let a loop that is behind go first.
const TURN_WITHIN: Duration = Duration::from_millis(200);

/// Who is told of this process's commits.
#[derive(Default)]
pub struct Wake {
    /// The relay: there is something in the outbox.
    pub relay: Notify,
    /// Whoever watches for changes on behalf of clients that wait; see [`crate::watch`].
    pub watchers: watch::Sender<()>,
    /// Loops that share the database with the commands.
    pub(crate) relaying: Turns,
    pub(crate) consuming: Turns,
}

/// Whose turn it is, a loop's or the commands': the backpressure on commands.
///
/// To take a command is cheaper than to bring it to its end. A service that takes all it can get has
/// no time left for that, and what it took piles up. So while a loop has more before it than fits a
/// batch, commands take turns with it: a batch of theirs after each of its own. Those that come faster
/// wait, and when too many wait, or one for too long, they are refused. Nothing is counted but batches
/// of this process: while somebody else is away, nothing is slowed down.
#[derive(Default)]
pub(crate) struct Turns(watch::Sender<bool>);

impl Turns {
    /// A batch was handled; `behind` says whether as much again may be waiting.
    pub(crate) fn taken(&self, behind: bool) {
        self.0.send_replace(behind);
    }

    /// Lets a loop that is behind handle a batch, unless it is stuck.
    pub(crate) async fn after_you(&self) {
        let mut turns = self.0.subscribe();
        if *turns.borrow_and_update() {
            let _ = timeout(TURN_WITHIN, turns.changed()).await;
        }
    }
}
