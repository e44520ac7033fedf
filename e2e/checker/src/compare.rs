//! The rules, as pure functions over what was read.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::records::Record;
use crate::rows::Handled;
use crate::verdict::Verdict;

/// The events of each topic, by id; a duplicate must be equal to the first record.
pub(crate) fn events<'a>(
    records: &'a [Record],
    verdict: &mut Verdict,
) -> HashMap<(&'static str, Uuid), &'a Record> {
    let mut events = HashMap::<_, &Record>::new();
    for record in records {
        let Some(event_id) = record.event_id else { continue };
        let first = *events.entry((record.topic, event_id)).or_insert(record);
        if first.position() == record.position() {
            continue;
        }
        verdict.duplicates += 1;
        if (first.hash, first.key_hash) != (record.hash, record.key_hash) {
            verdict.add("one id, two events", || format!("{first} and {record}: {event_id}"));
        }
    }
    events
}

/// The events of one key first arrive in the order of their times. Records are in the order of their partitions.
pub(crate) fn check_arrival(records: &[Record], verdict: &mut Verdict) {
    let (mut newest, mut seen) = (HashMap::new(), HashSet::new());
    for record in records {
        let (Some(event_id), Some(time)) = (record.event_id, record.time) else { continue };
        if !seen.insert((record.topic, event_id)) {
            continue;
        }
        let before = newest.insert((record.topic, record.key_hash), time);
        if before.is_some_and(|before| time < before) {
            verdict.add("overtaken", || format!("{record}: a later event of its key came first"));
        }
    }
}

/// The inbox and the dead letters of a service against the topics that it subscribes to.
pub(crate) fn check_subscriber(
    subscribed: &[&'static str],
    records: &[Record],
    events: &HashMap<(&'static str, Uuid), &Record>,
    handled: &Handled,
    verdict: &mut Verdict,
) {
    let Handled { service, inbox, dead_letters, waiting } = handled;
    for record in records.iter().filter(|record| subscribed.contains(&record.topic)) {
        let is_dead = dead_letters.contains(&record.position());
        match record.event_id {
            _ if is_dead => {}
            None => verdict.add("no event", || format!("{service} has no dead letter of {record}")),
            Some(event_id) if inbox.get(&event_id).is_none_or(|topic| topic != record.topic) => {
                verdict.add("never handled", || format!("{service} never handled {record}"));
            }
            Some(_) => {}
        }
    }
    for (event_id, topic) in inbox {
        let known =
            subscribed.iter().any(|name| name == topic && events.contains_key(&(*name, *event_id)));
        if !known {
            verdict.add("in no topic", || {
                format!("{service} has handled {event_id} of {topic}, which is in no topic")
            });
        }
    }
    for reason in waiting {
        verdict.add("dead letter", || format!("{service} has a dead letter that waits: {reason}"));
    }
}

/// The events that the rows of a publisher record against its topic.
pub(crate) fn check_publisher(
    topic: &'static str,
    recorded: &HashSet<Uuid>,
    events: &HashMap<(&'static str, Uuid), &Record>,
    verdict: &mut Verdict,
) {
    for event_id in recorded {
        if !events.contains_key(&(topic, *event_id)) {
            verdict.add("lost", || format!("{event_id} is not in {topic}"));
        }
    }
    for ((of, event_id), record) in events {
        if *of == topic && !recorded.contains(event_id) {
            verdict.add("invented", || format!("no row records {record}: {event_id}"));
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    const TOPIC: &str = "doors.opened";

    /// The event with this number, at this offset.
    fn record(offset: i64, event: u128) -> Record {
        Record {
            topic: TOPIC,
            partition: 0,
            offset,
            event_id: Some(Uuid::from_u128(event)),
            key_hash: 1,
            hash: event as u64,
            time: DateTime::from_timestamp(event as i64, 0),
        }
    }

    fn handled(events: &[u128]) -> Handled {
        let inbox = events.iter().map(|event| (Uuid::from_u128(*event), TOPIC.to_owned()));
        Handled {
            service: "visit".to_owned(),
            inbox: inbox.collect(),
            dead_letters: HashSet::new(),
            waiting: Vec::new(),
        }
    }

    fn kinds(records: &[Record], handled: &Handled, recorded: &[u128]) -> Vec<(&'static str, u64)> {
        let mut verdict = Verdict::default();
        let events = events(records, &mut verdict);
        check_arrival(records, &mut verdict);
        check_subscriber(&[TOPIC], records, &events, handled, &mut verdict);
        let recorded = recorded.iter().copied().map(Uuid::from_u128).collect();
        check_publisher(TOPIC, &recorded, &events, &mut verdict);
        verdict.kinds()
    }

    #[test]
    fn each_violation_is_found_and_a_duplicate_is_none() {
        let both = [record(0, 1), record(1, 2)];
        assert_eq!(kinds(&both, &handled(&[1, 2]), &[1, 2]), []);
        let twice = [record(0, 1), record(1, 2), record(2, 1)];
        assert_eq!(kinds(&twice, &handled(&[1, 2]), &[1, 2]), []);
        let changed = [record(0, 1), Record { hash: 9, ..record(1, 1) }];
        assert_eq!(kinds(&changed, &handled(&[1]), &[1]), [("one id, two events", 1)]);
        let swapped = [record(0, 2), record(1, 1)];
        assert_eq!(kinds(&swapped, &handled(&[1, 2]), &[1, 2]), [("overtaken", 1)]);
        let of_other_keys = [record(0, 2), Record { key_hash: 2, ..record(1, 1) }];
        assert_eq!(kinds(&of_other_keys, &handled(&[1, 2]), &[1, 2]), []);
        assert_eq!(kinds(&both, &handled(&[1]), &[1, 2]), [("never handled", 1)]);
        assert_eq!(kinds(&both, &handled(&[1, 2, 3]), &[1, 2]), [("in no topic", 1)]);
        assert_eq!(kinds(&both, &handled(&[1, 2]), &[1, 2, 3]), [("lost", 1)]);
        assert_eq!(kinds(&both, &handled(&[1, 2]), &[1]), [("invented", 1)]);
        let waits = Handled { waiting: vec!["why".into()], ..handled(&[1, 2]) };
        assert_eq!(kinds(&both, &waits, &[1, 2]), [("dead letter", 1)]);
        let nameless = [record(0, 1), Record { event_id: None, ..record(1, 2) }];
        assert_eq!(kinds(&nameless, &handled(&[1]), &[1]), [("no event", 1)]);
        let set_aside =
            Handled { dead_letters: [(TOPIC.to_owned(), 0, 1)].into(), ..handled(&[1]) };
        assert_eq!(kinds(&nameless, &set_aside, &[1]), []);
        let mut wrong_topic = handled(&[1, 2]);
        wrong_topic.inbox.insert(Uuid::from_u128(2), "others".to_owned());
        let expected = [("in no topic", 1), ("never handled", 1)];
        assert_eq!(kinds(&both, &wrong_topic, &[1, 2]), expected);
    }
}
