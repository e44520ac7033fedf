//! The inbox check: a subscriber's inbox contains each event of its topics and no other.

use std::collections::BTreeSet;

use anyhow::Result;
use chassis::event::{Retention, Subscriptions, Topic};
use chrono::{DateTime, Utc};
use futures::stream::StreamExt;
use sqlx::PgPool;
use uuid::Uuid;

use crate::dead_letters::DeadLetterIndex;
use crate::findings::Findings;
use crate::invariants::InvariantName;
use crate::invariants::MessagingInvariant::HandledOnce;
use crate::record::EventRecord;

/// A row of an inbox.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct InboxRow {
    /// The id of the handled event.
    pub event_id: Uuid,
    /// The topic that it was in.
    pub topic: String,
    /// When it was handled.
    pub received_at: DateTime<Utc>,
}

/// What is known about the stack beside a subscriber's inbox.
pub struct InboxContext<'a> {
    /// The dead letters of all services.
    pub dead_letters: &'a DeadLetterIndex,
    /// Events older than this may have left their topics.
    pub retained_since: DateTime<Utc>,
    /// Events that had no effect in a service, by service: a checker that knows the effects finds
    /// them. Such an event must not be in the inbox.
    pub unanswered: &'a BTreeSet<(&'static str, Uuid)>,
}

/// Compares a subscriber's inbox with the records of its topics. Both are read once, in order of
/// event id.
pub struct InboxCheck<'a> {
    service: &'static str,
    records: std::iter::Peekable<std::slice::Iter<'a, EventRecord>>,
    context: &'a InboxContext<'a>,
    matched: u64,
}

impl<'a> InboxCheck<'a> {
    /// A check of the inbox of a service. `records` are those of its topics that are not compacted,
    /// sorted by event id.
    pub fn new(
        service: &'static str,
        records: &'a [EventRecord],
        context: &'a InboxContext<'a>,
    ) -> InboxCheck<'a> {
        InboxCheck { service, records: records.iter().peekable(), context, matched: 0 }
    }

    /// Checks the next row, in order of event id.
    pub fn check_row<I: InvariantName>(&mut self, row: &InboxRow, findings: &mut Findings<I>) {
        let (service, InboxRow { event_id, topic, .. }) = (self.service, row);
        while let Some(record) = self.records.next_if(|record| record.event_id < row.event_id) {
            self.check_unhandled(record, findings);
        }
        let mut known = false;
        let mut set_aside = self.context.dead_letters.is_discarded(self.service, row.event_id);
        while let Some(record) = self.records.next_if(|record| record.event_id == row.event_id) {
            known = true;
            set_aside |= self.context.dead_letters.contains_for(record.position, self.service);
            let position = record.position;
            findings.unless(position.topic.name == row.topic, HandledOnce, "inbox", || {
                format!("{service}: {event_id} is in the inbox for {topic}, and at {position}")
            });
        }
        self.matched += u64::from(known);
        let is_answered = !self.context.unanswered.contains(&(self.service, row.event_id));
        // The event of a discarded dead letter has an inbox entry, so it never has an effect.
        findings.unless(is_answered || set_aside, HandledOnce, "no effect", || {
            format!("{service}: {event_id} of {topic} is in the inbox, and had no effect")
        });
        let is_old = row.received_at < self.context.retained_since;
        findings.unless(known || is_old, HandledOnce, "inbox", || {
            format!("{service}: {event_id} of {topic} is in the inbox, and in no topic")
        });
    }

    /// Checks the records after the last row. Returns the number of events that the service handled.
    pub fn finish<I: InvariantName>(mut self, findings: &mut Findings<I>) -> u64 {
        while let Some(record) = self.records.next() {
            self.check_unhandled(record, findings);
        }
        self.matched
    }

    fn check_unhandled<I: InvariantName>(&self, record: &EventRecord, findings: &mut Findings<I>) {
        let service = self.service;
        let is_set_aside = self.context.dead_letters.contains_for(record.position, service);
        findings.unless(is_set_aside, HandledOnce, "inbox", || {
            format!("{service}: never handled {} at {}", record.event_id, record.position)
        });
    }
}

/// Compares the inbox of a service with the records of the topics that it consumes, which are among these. What was
/// scheduled is no record of Kafka, and is left out. Returns the number of events that the service handled.
pub async fn check_inbox<I: InvariantName>(
    service: &'static str,
    subscriptions: &Subscriptions,
    db: &PgPool,
    records: impl Iterator<Item = EventRecord>,
    context: &InboxContext<'_>,
    findings: &mut Findings<I>,
) -> Result<u64> {
    let consumed = subscriptions.topics(service);
    let received = records.filter(|record| uses_inbox(consumed, record.position.topic));
    let mut received: Vec<EventRecord> = received.collect();
    received.sort_unstable_by_key(|record| record.event_id);
    let mut check = InboxCheck::new(service, &received, context);
    let rows = "select event_id, topic, received_at from chassis.inbox where topic not like '%/%' order by event_id";
    let mut rows = sqlx::query_as::<_, InboxRow>(rows).fetch(db);
    while let Some(row) = rows.next().await {
        check.check_row(&row?, findings);
    }
    Ok(check.finish(findings))
}

/// Whether a service has an inbox entry for each event of a topic. A compacted topic needs none,
/// since its consumers compare versions.
fn uses_inbox(consumed: &[&Topic], topic: &Topic) -> bool {
    topic.retention != Retention::Compact && consumed.iter().any(|it| it.name == topic.name)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::record::RecordPosition;

    static FIRST: Topic = Topic::new("a.first", "a", "");
    static SECOND: Topic = Topic::new("a.second", "a", "");
    const HANDLED: Uuid = Uuid::from_u128(1);
    const HANDLED_LATER: Uuid = Uuid::from_u128(2);
    const WITHOUT_EFFECT: Uuid = Uuid::from_u128(70);
    const UNKNOWN: Uuid = Uuid::from_u128(99);

    #[test]
    fn an_inbox_holds_each_event_of_its_topics_and_nothing_else() {
        let record = |event_id, topic| {
            let position = RecordPosition { topic, partition: 0, offset: 7 };
            EventRecord { event_id, position }
        };
        let received = [record(HANDLED, &FIRST), record(HANDLED_LATER, &SECOND)];
        let row = |event_id, topic: &Topic| InboxRow {
            event_id,
            topic: topic.name.into(),
            received_at: Utc::now(),
        };
        let right = [row(HANDLED, &FIRST), row(HANDLED_LATER, &SECOND)];
        let unanswered = BTreeSet::from([("b", WITHOUT_EFFECT), ("a", HANDLED)]);
        let check = |rows: &[InboxRow],
                     received: &[EventRecord],
                     dead_letters: &DeadLetterIndex| {
            let retained_since = Utc::now() - TimeDelta::days(13);
            let context = InboxContext { dead_letters, retained_since, unanswered: &unanswered };
            let mut findings = Findings::<crate::MessagingInvariant>::default();
            let mut check = InboxCheck::new("b", received, &context);
            rows.iter().for_each(|row| check.check_row(row, &mut findings));
            (check.finish(&mut findings), findings.count())
        };
        let none = DeadLetterIndex::default();
        assert_eq!(check(&right, &received, &none), (2, 0));
        assert_eq!(check(&right[..1], &received, &none), (1, 1), "one event was never handled");
        let mut dead_letters = DeadLetterIndex::default();
        dead_letters.add(received[1].position, "b", [0; 32]);
        assert_eq!(check(&right[..1], &received, &dead_letters), (1, 0), "it is a dead letter");
        let wrong = [row(HANDLED, &SECOND), right[1].clone()];
        assert_eq!(check(&wrong, &received, &none), (2, 1), "it is in the inbox for another topic");
        let unknown = [right[0].clone(), right[1].clone(), row(UNKNOWN, &SECOND)];
        assert_eq!(check(&unknown, &received, &none), (2, 1), "it is in no topic");
        let mut old = unknown.clone();
        old[2].received_at -= TimeDelta::days(20);
        assert_eq!(check(&old, &received, &none), (2, 0), "it is older than its topic's retention");
        let mut without_effect = old.clone();
        without_effect[2].event_id = WITHOUT_EFFECT;
        assert_eq!(check(&without_effect, &received, &none), (2, 1), "it had no effect");
        let discarded = DeadLetterIndex::from_rows(&[], [("b", WITHOUT_EFFECT)].into());
        assert_eq!(check(&without_effect, &received, &discarded), (2, 0), "it was discarded");
        let twice = [received[0], received[0], received[1]];
        assert_eq!(check(&right, &twice, &none), (2, 0), "a duplicate is handled once");
    }

    /// A decision published two events for one key. Its own service hears the second one, and another hears both.
    #[test]
    fn each_event_of_one_decision_is_handled_by_each_of_its_subscribers() {
        static TOLD: Topic = Topic::new("a.told", "a", "");
        let [first, second] = [(HANDLED, &FIRST), (HANDLED_LATER, &TOLD)];
        let missing = |service: &'static str, handled: &[(Uuid, &Topic)]| {
            let position = |topic| RecordPosition { topic, partition: 0, offset: 7 };
            let all = [first, second];
            let consumed: &[&Topic] = if service == "a" { &[&TOLD] } else { &[&FIRST, &TOLD] };
            let received = all.into_iter().filter(|(_, topic)| uses_inbox(consumed, topic));
            let received: Vec<EventRecord> = received
                .map(|(event_id, topic)| EventRecord { event_id, position: position(topic) })
                .collect();
            let dead_letters = &DeadLetterIndex::default();
            let retained_since = Utc::now() - TimeDelta::days(13);
            let context =
                InboxContext { dead_letters, retained_since, unanswered: &BTreeSet::new() };
            let mut findings = Findings::<crate::MessagingInvariant>::default();
            let mut check = InboxCheck::new(service, &received, &context);
            for (event_id, topic) in handled {
                let (event_id, topic) = (*event_id, topic.name.into());
                let row = InboxRow { event_id, topic, received_at: Utc::now() };
                check.check_row(&row, &mut findings);
            }
            check.finish(&mut findings);
            findings.count()
        };
        assert_eq!(missing("b", &[first, second]), 0);
        assert_eq!(missing("b", &[first]), 1, "the second is no duplicate of the first");
        assert_eq!(missing("a", &[second]), 0);
        assert_eq!(missing("a", &[]), 1, "a service hears its own event");
    }
}
