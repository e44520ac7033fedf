//! The partitions and the retention of topics.

use chassis::event::Retention;

/// The largest number of instances of a service that can share a topic.
///
/// A small number, because librdkafka sends a request for each partition (its issue 1700), so each
/// partition costs every batch a request. docs/performance.md has the measurements. Partitions can
/// be added later.
pub(crate) const PARTITIONS: i32 = 3;

/// Events are kept for two weeks: a consumer may be down that long, less a day. A test compares
/// this with the inbox, which must remember events for longer.
pub const FACT_RETENTION: Retention = Retention::Days(14);

/// State is kept for ever: the newest record of each key.
pub(crate) const STATE_RETENTION: Retention = Retention::Compact;
