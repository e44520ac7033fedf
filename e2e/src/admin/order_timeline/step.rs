//! One event of an order: its records, the subscribers that handled it, and what it still waits
//! for.

use std::collections::HashMap;

use chassis::event::Topic;
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::admin::order_timeline::records::TimelineRecord;
use crate::admin::order_timeline::view::format_duration;
use crate::checker::expected_records::ExpectedRecord;
use crate::console::printable;

/// The columns of the timeline.
pub const HEADER: [&str; 7] =
    ["DECIDED", "EVENT", "PLACE", "IN OUTBOX", "HANDLED BY", "IN TOPIC", "TRIES"];

const TIME_FORMAT: &str = "%H:%M:%S%.3f";

/// The largest difference between the clocks of a database and of the broker.
pub const CLOCK_SKEW_MAX: TimeDelta = TimeDelta::seconds(60);

/// One event of the order, with its records and their handling.
pub struct TimelineStep {
    pub topic: &'static Topic,
    pub event_id: Uuid,
    pub decided_at: DateTime<Utc>,
    /// The first is the original; others are duplicates or republished.
    pub records: Vec<TimelineRecord>,
    pub in_outbox: bool,
    /// The time and the number of attempts of each subscriber.
    pub handled: HashMap<&'static str, (DateTime<Utc>, i32)>,
    pub dead_letters: Vec<TimelineDeadLetter>,
}

#[derive(Clone, Debug, sqlx::FromRow)]
pub struct TimelineDeadLetter {
    #[sqlx(skip)]
    pub service: &'static str,
    pub dead_letter_id: i64,
    pub event_id: Option<Uuid>,
    pub state: String,
    pub reason: String,
}

impl TimelineStep {
    /// `None` if no row has the id of the event.
    pub fn new(
        event: &ExpectedRecord,
        found: &HashMap<(&'static str, Uuid), Vec<TimelineRecord>>,
    ) -> Option<TimelineStep> {
        let event_id = event.event_id?;
        let records = found.get(&(event.topic.name, event_id)).cloned();
        Some(TimelineStep {
            topic: event.topic,
            event_id,
            decided_at: event.decided_at,
            records: records.unwrap_or_default(),
            in_outbox: false,
            handled: HashMap::new(),
            dead_letters: Vec::new(),
        })
    }

    /// What the event still waits for, or what went wrong.
    pub fn pending_work(&self) -> Vec<String> {
        let name = self.topic.name;
        let mut pending = Vec::new();
        if self.in_outbox && self.records.is_empty() {
            pending.push(format!(
                "{name} waits in the outbox of {} for Kafka to acknowledge it",
                self.topic.publisher
            ));
        } else if self.records.is_empty() {
            pending.push(format!(
                "{name} is in no topic: older than its retention, or lost with a broker's disk"
            ));
        }
        for service in self.topic.subscribers {
            let dead_letter =
                self.dead_letters.iter().find(|dead_letter| dead_letter.service == *service);
            match dead_letter {
                Some(TimelineDeadLetter { dead_letter_id, state, reason, .. }) => pending.push(format!(
                    "{name} is a dead letter of {service}, number {dead_letter_id}, {state}: {}",
                    printable(reason)
                )),
                None if self.records.is_empty() || self.handled.contains_key(service) => {}
                None if self.is_committed_by(service) => pending.push(format!(
                    "{name} was skipped by {service}: `make republish KEY=…` with the order's id \
                     delivers it again"
                )),
                None => pending.push(format!("{name} waits for {service} to handle it")),
            }
        }
        pending
    }

    /// Whether the committed offsets of a service are beyond every record of it.
    fn is_committed_by(&self, service: &str) -> bool {
        let mut records = self.records.iter();
        !self.records.is_empty() && records.all(|record| record.committed_by.contains(&service))
    }

    /// The event, its further subscribers, and its further records.
    pub fn rows(&self) -> Vec<[String; 7]> {
        let first = self.records.first();
        let position = first.map_or("-".into(), |r| format!("{}@{}", r.partition, r.offset));
        let waited = first.map_or("-".into(), |r| format_duration(r.appended_at - self.decided_at));
        let handled = |service: &&'static str| match (self.handled.get(service), first) {
            (Some((at, attempts)), Some(record)) => {
                // The inbox may already have contained a republished event.
                let in_topic = *at - record.appended_at;
                let known = in_topic < -CLOCK_SKEW_MAX;
                let waited = if known { "before".into() } else { format_duration(in_topic) };
                (service.to_string(), waited, attempts.to_string())
            }
            (Some((_, attempts)), None) => (service.to_string(), "-".into(), attempts.to_string()),
            (None, _) if self.is_committed_by(service) => {
                (service.to_string(), "skipped".into(), "-".into())
            }
            (None, _) => (service.to_string(), "waits".into(), "-".into()),
        };
        let mut subscribers = self.topic.subscribers.iter().map(handled);
        let unhandled = ("-".into(), String::new(), String::new());
        let (by, topic, attempts) = subscribers.next().unwrap_or(unhandled);
        let decided = self.decided_at.format(TIME_FORMAT).to_string();
        let name = self.topic.name.to_string();
        let mut rows = vec![[decided, name, position, waited, by, topic, attempts]];
        for (by, topic, attempts) in subscribers {
            let [decided, name, position, waited] = [const { String::new() }; 4];
            rows.push([decided, name, position, waited, by, topic, attempts]);
        }
        for again in self.records.iter().skip(1) {
            let mut row = [const { String::new() }; 7];
            row[0] = again.appended_at.format(TIME_FORMAT).to_string();
            row[1] = if again.republished { "republished" } else { "duplicate" }.to_string();
            row[2] = format!("{}@{}", again.partition, again.offset);
            rows.push(row);
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;

    #[test]
    fn an_event_that_a_consumer_skipped_does_not_wait_for_it() {
        let record = |passed_by: &[&'static str]| TimelineRecord {
            partition: 0,
            offset: 8,
            appended_at: Utc::now(),
            republished: false,
            committed_by: passed_by.to_vec(),
        };
        let describe = |records| {
            let step = TimelineStep {
                topic: &events::payments::VERIFIED,
                event_id: Uuid::nil(),
                decided_at: Utc::now(),
                records,
                in_outbox: false,
                handled: HashMap::new(),
                dead_letters: Vec::new(),
            };
            (step.pending_work().join("; "), step.rows().concat().join("; "))
        };
        let (why, line) = describe(vec![record(&["order"])]);
        assert!(why.contains("skipped by order") && line.contains("skipped"), "{why}: {line}");
        for records in [vec![record(&[])], vec![record(&["order"]), record(&[])]] {
            let (why, line) = describe(records);
            assert!(why.contains("waits for order") && line.contains("waits"), "{why}: {line}");
        }
    }
}
