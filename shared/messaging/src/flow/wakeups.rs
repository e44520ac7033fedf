//! Wakeups: a commit in this process wakes the loops that would otherwise find it at their next poll.
//!
//! A wakeup is only a hint: other replicas commit too, and their commits are found by polling.

use tokio::sync::{Notify, watch};

use crate::flow::backpressure::Backpressure;

/// What a commit of this process wakes.
#[derive(Default)]
pub struct Wakeups {
    /// The relay: the outbox has new rows.
    pub relay: Notify,
    /// The change feed of the host, which polls for clients that wait.
    pub change_feed: watch::Sender<()>,
    /// The backpressure of the two loops that share the database with the commands.
    pub(crate) relay_backpressure: Backpressure,
    pub consumer_backpressure: Backpressure,
}
