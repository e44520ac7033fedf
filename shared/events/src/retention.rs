//! How many partitions a topic has, and how long its records are kept: what topics have alike.

use chassis::event::Retention;

/// How many instances of a service can share a topic, at most.
///
/// No more than will be used soon: librdkafka sends a request for each partition (its issue 1700), so each
/// partition costs each batch a request. More can be added. `docs/performance.md` has the measurements.
pub(crate) const PARTITIONS: i32 = 3;

/// Facts are kept for two weeks: a consumer may be down that long, less a day. A test holds this
/// against the inbox, which must remember for longer.
pub const FACT_RETENTION: Retention = Retention::Days(14);

/// State is kept for ever: the newest record of each key.
pub(crate) const STATE_RETENTION: Retention = Retention::Compact;
