//! How old the subject of an event was when the event was decided, for the metric `event_decision_seconds`.
//!
//! A key that is a UUID of version 7 begins with the time at which it was drawn. For the last event of a saga, the
//! metric is therefore the duration of the saga. Its count is the number of committed events, even while the broker is
//! down.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use metrics::histogram;
use uuid::Uuid;

use crate::outbox::Envelope;

/// The ages at the decisions of one transaction, by topic, in seconds.
#[derive(Default)]
pub(crate) struct DecisionAges(BTreeMap<&'static str, Vec<f64>>);

impl DecisionAges {
    /// Reads the keys of the events that were decided at `now`.
    pub fn new(envelopes: &[Envelope], now: DateTime<Utc>) -> DecisionAges {
        let mut ages = DecisionAges::default();
        for Envelope { event, .. } in envelopes {
            if let Some(age) = age(&event.key, now) {
                ages.0.entry(event.topic.name).or_default().push(age);
            }
        }
        ages
    }

    /// After the commit, never before: a transaction that is tried again decides again.
    pub fn record(self) {
        for (topic, ages) in self.0 {
            let decisions = histogram!("event_decision_seconds", "topic" => topic);
            ages.into_iter().for_each(|age| decisions.record(age));
        }
    }
}

/// The time since a key was drawn. It is 0 if the clock that drew the key is ahead.
fn age(key: &str, now: DateTime<Utc>) -> Option<f64> {
    let key = Uuid::try_parse(key).ok()?;
    // Other versions have no Unix time.
    let (seconds, nanos) = key.get_timestamp().filter(|_| key.get_version_num() == 7)?.to_unix();
    let drawn_at = DateTime::from_timestamp(i64::try_from(seconds).ok()?, nanos)?;
    Some((now - drawn_at).to_std().unwrap_or_default().as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_age_of_a_key_is_known_if_it_begins_with_its_time() {
        let drawn_at = "2026-11-27T12:00:00Z".parse::<DateTime<Utc>>().unwrap();
        let millis = drawn_at.timestamp_millis() as u64;
        let key = uuid::Builder::from_unix_timestamp_millis(millis, &[7; 10]).into_uuid();
        let after = |seconds| drawn_at + chrono::TimeDelta::milliseconds(seconds);
        assert_eq!(age(&key.to_string(), after(1_500)), Some(1.5));
        assert_eq!(age(&key.to_string(), after(-20)), Some(0.0), "another clock drew it");
        for other in ["deck-lantern", "01900000-0000-4000-8000-000000000001", ""] {
            assert_eq!(age(other, drawn_at), None, "{other}");
        }
    }
}
