//! How many partitions a topic has, and how long its records are kept: what topics have alike.

use chassis::event::Retention;

/// How many instances of a service can share a topic, at most.
///
/// No more than will be used soon: librdkafka sends a request for each partition (its issue 1700), so each
/// partition costs each batch a request. Measured on two cores, a saga cost up to a third less processor
/// time with 6 than with 12 (64 callers), and 6 to 17 % less with 3 than with 6 (650 to 1,300 orders a
/// second), where orders ended after 59 to 104 ms at the median and not after 77 to 210. More can be added.
pub(crate) const PARTITIONS: i32 = 3;

/// Facts are kept for two weeks: a consumer may be down that long, less a day. A test holds this
/// against the inbox, which must remember for longer.
pub const FACT_RETENTION: Retention = Retention::Days(14);

/// State is kept for ever: the newest record of each key.
pub(crate) const STATE_RETENTION: Retention = Retention::Compact;
