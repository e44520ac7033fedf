//! Tells the rest of the process that something was committed here, so that it looks sooner than its
//! next poll. Only ever a hint: other replicas commit too, and their commits are found by polling.

use tokio::sync::{Notify, watch};

/// Who is told of this process's commits.
#[derive(Default)]
pub struct Wake {
    /// The relay: there is something in the outbox.
    pub relay: Notify,
    /// Whoever watches for changes on behalf of clients that wait; see [`crate::watch`].
    pub watchers: watch::Sender<()>,
}
