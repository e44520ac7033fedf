//! A part of a batch, and how it is split into smaller ones.

use std::time::Duration;

use chrono::{DateTime, Utc};
use rdkafka::message::Message;

use crate::consumer::deferred::Attempts;
use crate::transaction::incoming_record::IncomingRecord;
use crate::unit_of_work::UnitOfWork;

/// A part of a batch, which shares a transaction.
pub(crate) struct SubBatch<R: UnitOfWork> {
    pub items: Vec<IncomingRecord<R>>,
    /// The attempts for its events, those as a part of larger sub-batches included.
    pub attempts: Attempts,
}

impl<R: UnitOfWork> SubBatch<R> {
    /// Each event by itself.
    pub fn split_into_singles(self) -> Vec<SubBatch<R>> {
        let SubBatch { items, attempts } = self;
        items.into_iter().map(|item| SubBatch { items: vec![item], attempts }).collect()
    }

    /// Its two halves.
    pub fn bisect(mut self) -> Vec<SubBatch<R>> {
        let right = self.items.split_off(self.items.len() / 2);
        self.split([right])
    }

    /// The events before a bad one, the bad one alone, and the events after it.
    pub fn isolate(mut self, nth: usize) -> Vec<SubBatch<R>> {
        let right = self.items.split_off(nth + 1);
        let bad = self.items.split_off(nth);
        self.split([bad, right])
    }

    fn split<const N: usize>(self, others: [Vec<IncomingRecord<R>>; N]) -> Vec<SubBatch<R>> {
        let SubBatch { items, attempts } = self;
        let pieces = std::iter::once(items).chain(others).filter(|items| !items.is_empty());
        pieces.map(|items| SubBatch { items, attempts }).collect()
    }
}

/// The position and the event id of a record, for the log.
pub(super) fn describe_record<R: UnitOfWork>(item: &IncomingRecord<R>) -> String {
    let IncomingRecord { message, event_id, .. } = item;
    let event = event_id.map_or("no event id".to_string(), |id| format!("event {id}"));
    format!("{}[{}]@{} ({event})", message.topic(), message.partition(), message.offset())
}

/// The age of a record, as far as the broker's clock and this one agree.
pub(super) fn record_age<R: UnitOfWork>(item: &IncomingRecord<R>) -> Option<Duration> {
    let written_at = DateTime::from_timestamp_millis(item.message.timestamp().to_millis()?)?;
    (Utc::now() - written_at).to_std().ok()
}
