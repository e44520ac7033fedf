//! The replacement of a client whose credentials have changed. librdkafka reads them when it makes a client.

use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use tokio::sync::watch;

use crate::flow::backoff::RetryBackoff;

/// How long a client is kept after its credentials have changed: each for another time, so that they are replaced
/// one after the other and most partitions have a reader at any time.
const REPLACEMENT_BACKOFF: RetryBackoff = RetryBackoff::constant(Duration::from_secs(8));

pub(super) struct Replacement {
    config: watch::Receiver<ClientConfig>,
    due_at: Option<Instant>,
}

impl Replacement {
    pub(super) fn new(config: watch::Receiver<ClientConfig>) -> Replacement {
        Replacement { config, due_at: None }
    }

    pub(super) fn is_due(&mut self) -> bool {
        // Without a sender the credentials never change again.
        if !self.config.has_changed().unwrap_or(false) {
            return false;
        }
        let delay = || Instant::now() + REPLACEMENT_BACKOFF.pause_after(1);
        *self.due_at.get_or_insert_with(delay) <= Instant::now()
    }
}
