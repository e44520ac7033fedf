//! Gaps: records between how far a partition was handled and where the group or the log continues.
//!
//! Promise: records that a service would have missed are reported: by a line at ERROR with both offsets, and by a
//! counter. Transaction markers and records that are in the inbox do not count as a gap.

use std::collections::HashMap;

use metrics::counter;
use parking_lot::Mutex;
use tracing::error;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GapCause {
    /// The committed offset lay above them.
    Skipped,
    /// They are gone from the log.
    Deleted,
}

impl GapCause {
    fn as_str(self) -> &'static str {
        match self {
            GapCause::Skipped => "skipped",
            GapCause::Deleted => "deleted",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Gap {
    pub topic: String,
    pub partition: i32,
    pub from: i64,
    pub to: i64,
}

/// An alert on an increase does not see the first increment of a new counter.
pub(super) fn start_counters(topic: &'static str) {
    counter!("consumer_log_truncated_total", "topic" => topic).increment(0);
    for cause in [GapCause::Skipped, GapCause::Deleted] {
        counter(topic, cause).increment(0);
    }
}

fn counter(topic: &str, cause: GapCause) -> metrics::Counter {
    counter!("consumer_gaps_total", "topic" => topic.to_string(), "cause" => cause.as_str())
}

pub(super) fn report_deleted(Gap { topic, partition, from, to }: &Gap) {
    error!(
        "{topic}[{partition}]: records were deleted before they were handled, from offset {from} on: the log begins at {to} now. Their publisher must republish them"
    );
    counter(topic, GapCause::Deleted).increment(1);
}

/// The gaps of a client's partitions that are being read: the committed offset lay above them. That alone is no fault:
/// an instance that was killed may have committed an offset in Kafka and not yet its position in the database.
#[derive(Default)]
pub(crate) struct SuspectedGaps(Mutex<HashMap<(String, i32), (i64, i64)>>);

impl SuspectedGaps {
    pub(super) fn suspect(&self, gap: Gap) {
        self.0.lock().insert((gap.topic, gap.partition), (gap.from, gap.to));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    /// Notes that a record was handled for the first time. If it lies within a gap, the gap is reported, once.
    pub(super) fn record_first_handling(&self, topic: &str, partition: i32, offset: i64) {
        let mut gaps = self.0.lock();
        let place = (topic.to_string(), partition);
        let Some((_, to)) = gaps.get(&place).copied() else { return };
        gaps.remove(&place);
        if offset < to {
            error!(
                "{topic}[{partition}]: the committed offset of the group was {to}, but the records from {offset} on had not been handled: another program committed it, or the database was restored. The consumer handles them now"
            );
            counter(topic, GapCause::Skipped).increment(1);
        }
    }
}
