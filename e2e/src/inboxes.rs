//! A subscriber's inbox holds each event of its topics, and nothing else.

use std::collections::BTreeSet;

use chassis::event::{Retention, Topic};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::checks::Around;
use crate::facts::Fact;
use crate::findings::Findings;
use crate::invariants::Invariant::I7;

/// A row of an inbox.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct InboxRow {
    pub event_id: Uuid,
    pub topic: String,
    pub received_at: DateTime<Utc>,
}

/// Goes through a subscriber's inbox and through what lies in its topics, both by event id, once.
pub struct InboxCheck<'a> {
    pub service: &'static str,
    /// Sorted by event id.
    pub facts: std::iter::Peekable<std::slice::Iter<'a, &'a Fact>>,
    pub around: &'a Around<'a>,
    /// Events that services have still to answer.
    pub unanswered: &'a BTreeSet<(&'static str, Uuid)>,
    pub matched: u64,
}

impl<'a> InboxCheck<'a> {
    pub fn new(
        service: &'static str,
        facts: &'a [&'a Fact],
        around: &'a Around<'a>,
        unanswered: &'a BTreeSet<(&'static str, Uuid)>,
    ) -> InboxCheck<'a> {
        InboxCheck { service, facts: facts.iter().peekable(), around, unanswered, matched: 0 }
    }

    /// The next row, in order of event id.
    pub fn row(&mut self, row: &InboxRow, findings: &mut Findings) {
        while let Some(fact) = self.facts.next_if(|fact| fact.event_id < row.event_id) {
            self.unhandled(fact, findings);
        }
        let (mut known, mut set_aside) = (false, false);
        while let Some(fact) = self.facts.next_if(|fact| fact.event_id == row.event_id) {
            known = true;
            set_aside |= self.around.letters.has_of(fact.place, self.service);
            findings.unless(fact.place.topic().name == row.topic, I7, "inbox", || {
                format!(
                    "{}: {} is entered for {}, and lies at {}",
                    self.service, row.event_id, row.topic, fact.place
                )
            });
        }
        self.matched += u64::from(known);
        let is_answered = !self.unanswered.contains(&(self.service, row.event_id));
        // A letter that is discarded is entered, so that it never has an effect.
        findings.unless(is_answered || set_aside, I7, "no effect", || {
            format!(
                "{}: {} of {} is entered, and nothing was done",
                self.service, row.event_id, row.topic
            )
        });
        findings.unless(known || row.received_at < self.around.kept_since, I7, "inbox", || {
            format!(
                "{}: {} of {} is entered, and in no topic",
                self.service, row.event_id, row.topic
            )
        });
    }

    pub fn end(&mut self, findings: &mut Findings) {
        while let Some(fact) = self.facts.next() {
            self.unhandled(fact, findings);
        }
    }

    fn unhandled(&self, fact: &Fact, findings: &mut Findings) {
        let service = self.service;
        findings.unless(self.around.letters.has_of(fact.place, service), I7, "inbox", || {
            format!("{service}: never handled {} at {}", fact.event_id, fact.place)
        });
    }
}

/// The topics of facts that a service reads; `stock.items` needs no inbox.
pub fn enters(service: &str, topic: &Topic) -> bool {
    topic.retention != Retention::Compact && topic.subscribers.contains(&service)
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use events::{payments, stock};

    use super::*;
    use crate::checks::tests::{HELD, PAID, confirmed, id, now};
    use crate::facts::Letters;

    #[test]
    fn an_inbox_holds_each_event_of_its_topics_and_nothing_else() {
        let facts = confirmed().facts;
        let mut heard: Vec<&Fact> =
            facts.iter().filter(|fact| enters("order", fact.place.topic())).collect();
        heard.sort_by_key(|fact| fact.event_id);
        let row = |event: u128, topic: &Topic| InboxRow {
            event_id: id(event),
            topic: topic.name.into(),
            received_at: now(),
        };
        let right = [row(PAID, &payments::VERIFIED), row(HELD, &stock::RESERVED)];
        let check = |rows: &[InboxRow], heard: &[&Fact], letters: &Letters| {
            let unanswered = BTreeSet::from([("order", id(HELD + 70)), ("stock", id(PAID))]);
            let around =
                Around { letters, kept_since: now() - TimeDelta::days(13), clocks_apart_ms: 0 };
            let (mut check, mut findings) =
                (InboxCheck::new("order", heard, &around, &unanswered), Findings::default());
            rows.iter().for_each(|row| check.row(row, &mut findings));
            check.end(&mut findings);
            (check.matched, findings.count())
        };
        let none = Letters::default();
        assert_eq!(check(&right, &heard, &none), (2, 0));
        assert_eq!(check(&right[..1], &heard, &none), (1, 1), "one was never handled");
        let mut letters = Letters::default();
        letters.add(heard[1].place, "order", [0; 32]);
        assert_eq!(check(&right[..1], &heard, &letters), (1, 0), "it is a dead letter");
        let wrong = [row(PAID, &payments::DECLINED), right[1].clone()];
        assert_eq!(check(&wrong, &heard, &none), (2, 1), "entered for another topic");
        let unknown = [right[0].clone(), right[1].clone(), row(99, &stock::RESERVED)];
        assert_eq!(check(&unknown, &heard, &none), (2, 1), "it is in no topic");
        let mut old = unknown.clone();
        old[2].received_at = now() - TimeDelta::days(20);
        assert_eq!(check(&old, &heard, &none), (2, 0), "its topic has forgotten it");
        let twice = [heard[0], heard[0], heard[1]];
        assert_eq!(check(&right, &twice, &none), (2, 0), "a repeat in the topic is handled once");
    }
}
