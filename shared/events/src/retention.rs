//! The partitions and the retention of topics.

use std::time::Duration;

use chassis::event::Retention;

/// The largest number of instances of a service that can share a topic.
///
/// A small number, because librdkafka sends a request for each partition (its issue 1700), so each
/// partition costs every batch a request. Decision 0021 has the measurements. Partitions can be added
/// later.
pub(crate) const PARTITIONS: i32 = 3;

const FACT_RETENTION_DAYS: u32 = 14;

/// Events are kept for two weeks. A test compares this with the inbox, which must remember events
/// for longer.
pub const FACT_RETENTION: Retention = Retention::Days(FACT_RETENTION_DAYS);

/// The longest outage of a consumer after which it still finds every event: the retention, less a
/// day.
pub const TOLERATED_OUTAGE: Duration =
    Duration::from_secs((FACT_RETENTION_DAYS as u64 - 1) * 24 * 3600);

/// State is kept for ever: the newest record of each key.
pub(crate) const STATE_RETENTION: Retention = Retention::Compact;
