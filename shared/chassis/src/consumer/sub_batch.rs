//! A part of a batch, and how it is split into smaller ones.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::message::Message;

use crate::consumer::deferred::Attempts;
use crate::transaction::failure::bisect;
use crate::transaction::incoming_record::IncomingRecord;
use crate::unit_of_work::UnitOfWork;

/// A part of a batch, which shares a transaction.
pub(crate) struct SubBatch<R: UnitOfWork> {
    pub items: Vec<IncomingRecord<R>>,
    /// The attempts for its events, those as a part of larger sub-batches included.
    pub attempts: Attempts,
    /// How often another transaction wrote the same keys at the same moment.
    pub races: u32,
}

/// How a sub-batch is split.
pub(crate) enum SplitBy {
    /// Into single events.
    Singles,
    Halves,
    /// Into the events before this one, this one alone, and the events after it.
    Isolating(usize),
}

impl<R: UnitOfWork> SubBatch<R> {
    pub fn new(items: Vec<IncomingRecord<R>>, attempts: Attempts) -> SubBatch<R> {
        SubBatch { items, attempts, races: 0 }
    }

    /// Its parts, in their order.
    pub fn split(self, by: SplitBy) -> Vec<SubBatch<R>> {
        let SubBatch { mut items, attempts, .. } = self;
        let parts = match by {
            SplitBy::Singles => items.into_iter().map(|item| vec![item]).collect(),
            SplitBy::Halves => Vec::from(bisect(items)),
            SplitBy::Isolating(nth) => {
                let right = items.split_off(nth + 1);
                let isolated = items.split_off(nth);
                vec![items, isolated, right]
            }
        };
        let parts = parts.into_iter().filter(|items| !items.is_empty());
        parts.map(|items| SubBatch::new(items, attempts)).collect()
    }
}

/// The position and the event id of a record, for the log.
pub(super) fn describe_record<R: UnitOfWork>(item: &IncomingRecord<R>) -> String {
    let event = item.event_id.map_or("no event id".to_string(), |id| format!("event {id}"));
    let (topic, partition, offset) = item.position();
    format!("{topic}[{partition}]@{offset} ({event})")
}

/// The age of a record, as far as the broker's clock and this one agree.
pub(super) fn record_age<R: UnitOfWork>(item: &IncomingRecord<R>) -> Option<Duration> {
    let written_at = DateTime::from_timestamp_millis(item.message.timestamp().to_millis()?)?;
    (Utc::now() - written_at).to_std().ok()
}
