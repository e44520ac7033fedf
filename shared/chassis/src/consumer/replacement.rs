//! The replacement of a client whose credentials have changed. librdkafka reads them when it makes a client.

use std::time::{Duration, Instant};

use crate::config::KafkaConfig;
use crate::config::reload::Live;
use crate::flow::backoff::RetryBackoff;

/// How long a client is kept after its credentials have changed: each for another time, so that they are replaced
/// one after the other and most partitions have a reader at any time.
const REPLACEMENT_BACKOFF: RetryBackoff =
    RetryBackoff { delay_min: REPLACEMENT_DELAY, delay_max: REPLACEMENT_DELAY };
const REPLACEMENT_DELAY: Duration = Duration::from_secs(8);

/// When a client is replaced because its credentials have changed.
pub(super) struct Replacement {
    config: Live<KafkaConfig>,
    due_at: Option<Instant>,
}

impl Replacement {
    /// For a client with the settings that were last read.
    pub(super) fn new(config: Live<KafkaConfig>) -> Replacement {
        Replacement { config, due_at: None }
    }

    /// Whether the client is replaced now.
    pub(super) fn is_due(&mut self) -> bool {
        if !self.config.has_changed() {
            return false;
        }
        let delay = || Instant::now() + REPLACEMENT_BACKOFF.pause_after(1);
        *self.due_at.get_or_insert_with(delay) <= Instant::now()
    }
}
