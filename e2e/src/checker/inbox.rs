//! The inbox check (I7): a subscriber's inbox contains each event of its topics and no other.

use std::collections::BTreeSet;

use chassis::event::{Retention, Topic};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::I7;
use crate::checker::record::RecordSummary;
use crate::checker::tally::CheckContext;

/// A row of an inbox.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct InboxRow {
    pub event_id: Uuid,
    pub topic: String,
    pub received_at: DateTime<Utc>,
}

/// Compares a subscriber's inbox with the records of its topics. Both are read once, in order of
/// event id.
pub struct InboxCheck<'a> {
    pub service: &'static str,
    /// Sorted by event id.
    pub records: std::iter::Peekable<std::slice::Iter<'a, &'a RecordSummary>>,
    pub context: &'a CheckContext<'a>,
    /// Events without a response of the service so far, by service.
    pub unanswered: &'a BTreeSet<(&'static str, Uuid)>,
    pub matched: u64,
}

impl<'a> InboxCheck<'a> {
    pub fn new(
        service: &'static str,
        records: &'a [&'a RecordSummary],
        context: &'a CheckContext<'a>,
        unanswered: &'a BTreeSet<(&'static str, Uuid)>,
    ) -> InboxCheck<'a> {
        InboxCheck { service, records: records.iter().peekable(), context, unanswered, matched: 0 }
    }

    /// Checks the next row, in order of event id.
    pub fn check_row(&mut self, row: &InboxRow, findings: &mut Findings) {
        while let Some(record) = self.records.next_if(|record| record.event_id < row.event_id) {
            self.check_unhandled(record, findings);
        }
        let mut known = false;
        let mut set_aside = self.context.dead_letters.is_discarded(self.service, row.event_id);
        while let Some(record) = self.records.next_if(|record| record.event_id == row.event_id) {
            known = true;
            set_aside |= self.context.dead_letters.contains_for(record.position, self.service);
            findings.unless(record.position.topic().name == row.topic, I7, "inbox", || {
                format!(
                    "{}: {} is in the inbox for {}, and in the topic at {}",
                    self.service, row.event_id, row.topic, record.position
                )
            });
        }
        self.matched += u64::from(known);
        let is_answered = !self.unanswered.contains(&(self.service, row.event_id));
        // The event of a discarded dead letter has an inbox entry, so it never has an effect.
        findings.unless(is_answered || set_aside, I7, "no effect", || {
            format!(
                "{}: {} of {} is in the inbox, and had no effect",
                self.service, row.event_id, row.topic
            )
        });
        findings.unless(
            known || row.received_at < self.context.retained_since,
            I7,
            "inbox",
            || {
                format!(
                    "{}: {} of {} is in the inbox, and in no topic",
                    self.service, row.event_id, row.topic
                )
            },
        );
    }

    pub fn finish(&mut self, findings: &mut Findings) {
        while let Some(record) = self.records.next() {
            self.check_unhandled(record, findings);
        }
    }

    fn check_unhandled(&self, record: &RecordSummary, findings: &mut Findings) {
        let service = self.service;
        findings.unless(
            self.context.dead_letters.contains_for(record.position, service),
            I7,
            "inbox",
            || format!("{service}: never handled {} at {}", record.event_id, record.position),
        );
    }
}

/// Whether a service has an inbox entry for each event of a topic. `stock.items` needs none, since
/// its consumer compares versions.
pub fn uses_inbox(service: &str, topic: &Topic) -> bool {
    topic.retention != Retention::Compact && topic.subscribers.contains(&service)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use events::{payments, stock};

    use super::*;
    use crate::checker::dead_letters::DeadLetterIndex;
    use crate::checker::test_cases::{RESERVED, VERIFIED, confirmed, id, now};

    #[test]
    fn an_inbox_holds_each_event_of_its_topics_and_nothing_else() {
        let records = confirmed().records;
        let mut received: Vec<&RecordSummary> =
            records.iter().filter(|record| uses_inbox("order", record.position.topic())).collect();
        received.sort_by_key(|record| record.event_id);
        let row = |event: u128, topic: &Topic| InboxRow {
            event_id: id(event),
            topic: topic.name.into(),
            received_at: now(),
        };
        let right = [row(VERIFIED, &payments::VERIFIED), row(RESERVED, &stock::RESERVED)];
        let check = |rows: &[InboxRow],
                     received: &[&RecordSummary],
                     dead_letters: &DeadLetterIndex| {
            let unanswered =
                BTreeSet::from([("order", id(RESERVED + 70)), ("stock", id(VERIFIED))]);
            let context = CheckContext {
                dead_letters,
                retained_since: now() - TimeDelta::days(13),
                clock_skew_ms: 0,
            };
            let (mut check, mut findings) =
                (InboxCheck::new("order", received, &context, &unanswered), Findings::default());
            rows.iter().for_each(|row| check.check_row(row, &mut findings));
            check.finish(&mut findings);
            (check.matched, findings.count())
        };
        let none = DeadLetterIndex::default();
        assert_eq!(check(&right, &received, &none), (2, 0));
        assert_eq!(check(&right[..1], &received, &none), (1, 1), "one event was never handled");
        let mut dead_letters = DeadLetterIndex::default();
        dead_letters.add(received[1].position, "order", [0; 32]);
        assert_eq!(check(&right[..1], &received, &dead_letters), (1, 0), "it is a dead letter");
        let wrong = [row(VERIFIED, &payments::DECLINED), right[1].clone()];
        assert_eq!(check(&wrong, &received, &none), (2, 1), "it is in the inbox for another topic");
        let unknown = [right[0].clone(), right[1].clone(), row(99, &stock::RESERVED)];
        assert_eq!(check(&unknown, &received, &none), (2, 1), "it is in no topic");
        let mut old = unknown.clone();
        old[2].received_at = now() - TimeDelta::days(20);
        assert_eq!(
            check(&old, &received, &none),
            (2, 0),
            "it is older than the retention of its topic"
        );
        let mut without_effect = old.clone();
        without_effect[2].event_id = id(RESERVED + 70);
        assert_eq!(check(&without_effect, &received, &none), (2, 1), "it had no effect");
        let discarded = [("order", id(RESERVED + 70))].into();
        let discarded = DeadLetterIndex::from_rows(&[], discarded);
        assert_eq!(check(&without_effect, &received, &discarded), (2, 0), "it was discarded");
        let twice = [received[0], received[0], received[1]];
        assert_eq!(
            check(&right, &twice, &none),
            (2, 0),
            "a duplicate in the topic is handled once"
        );
    }
}
