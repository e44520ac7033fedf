//! A subscriber's inbox holds each event of its topics, and nothing else.

use chassis::event::{Retention, Topic};
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::checks::Around;
use crate::facts::Fact;
use crate::findings::Findings;

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
    pub matched: u64,
}

impl<'a> InboxCheck<'a> {
    pub fn new(
        service: &'static str,
        facts: &'a [&'a Fact],
        around: &'a Around<'a>,
    ) -> InboxCheck<'a> {
        InboxCheck { service, facts: facts.iter().peekable(), around, matched: 0 }
    }

    /// The next row, in order of event id.
    pub fn row(&mut self, row: &InboxRow, findings: &mut Findings) {
        while let Some(fact) = self.facts.next_if(|fact| fact.event_id < row.event_id) {
            self.unhandled(fact, findings);
        }
        let mut known = false;
        while let Some(fact) = self.facts.next_if(|fact| fact.event_id == row.event_id) {
            known = true;
            findings.unless(fact.place.topic().name == row.topic, "inbox", || {
                format!(
                    "{}: {} is entered for {}, and lies at {}",
                    self.service, row.event_id, row.topic, fact.place
                )
            });
        }
        self.matched += u64::from(known);
        findings.unless(known || row.received_at < self.around.kept_since, "inbox", || {
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
        findings.unless(self.around.letters.has_of(fact.place, service), "inbox", || {
            format!("{service}: never handled {} at {}", fact.event_id, fact.place)
        });
    }
}

/// The topics of facts that a service reads; `stock.items` needs no inbox.
pub fn enters(service: &str, topic: &Topic) -> bool {
    topic.retention != Retention::Compact && topic.subscribers.contains(&service)
}
