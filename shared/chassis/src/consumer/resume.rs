//! The resume of paused partitions, repeated because librdkafka may lose it.

use std::time::{Duration, Instant};

use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaResult;

use crate::consumer::rebalance::GroupContext;

/// How often a resume is repeated, and at which interval. librdkafka loses a resume that coincides with a
/// rebalance, and reports success (its issue 5591): that partition would never be read again. A resume without a
/// paused partition does nothing; without a limit, the repetitions themselves would coincide with rebalances.
const RESUME_RETRIES: u32 = 2;
const RESUME_INTERVAL: Duration = Duration::from_secs(1);

/// Repeats the resume of all partitions of a client.
pub(crate) struct ResumeRetry {
    remaining: u32,
    /// The generation at the last check.
    generation: u64,
    checked_at: Instant,
}

impl ResumeRetry {
    /// Nothing has been resumed yet.
    pub fn new() -> ResumeRetry {
        ResumeRetry { remaining: 0, generation: 0, checked_at: Instant::now() }
    }

    /// Begins the repetitions, after a resume.
    pub fn restart(&mut self) {
        (self.remaining, self.checked_at) = (RESUME_RETRIES, Instant::now());
    }

    /// Resumes all partitions again, if it is time.
    pub fn retry_if_due(&mut self, client: &StreamConsumer<GroupContext>) {
        if self.checked_at.elapsed() < RESUME_INTERVAL {
            return;
        }
        self.checked_at = Instant::now();
        let generation = client.context().generation();
        if self.generation != generation {
            (self.generation, self.remaining) = (generation, RESUME_RETRIES);
        } else if self.remaining > 0 {
            self.remaining -= 1;
            let _ = resume_all(client);
        }
    }
}

/// Resumes all partitions that a client has.
pub(crate) fn resume_all(client: &StreamConsumer<GroupContext>) -> KafkaResult<()> {
    client.resume(&client.assignment()?)
}
