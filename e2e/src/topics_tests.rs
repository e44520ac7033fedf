//! Records made by hand, right ones and wrong ones, and what the reader makes of each.

use chassis::avro::frame;
use events::orders;
use events::stock::{self, StockItem};
use rdkafka::Timestamp;
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};

use super::*;
use crate::checks::Around;
use crate::checks::tests::id;
use crate::client::Addresses;
use crate::facts::Letters;
use crate::findings::Findings;
use crate::{strangers, verify};

/// The registry has a schema under the first id, and says of the second that it has none.
const KNOWN: u32 = 1;
const UNKNOWN: u32 = 2;

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A record as it would lie in a topic.
struct Made {
    topic: &'static Topic,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    headers: Vec<(&'static str, String)>,
    at: Timestamp,
}

impl Made {
    /// A right one, as the publisher of the topic would have made it.
    fn right(topic: &'static Topic) -> Made {
        Made::of(topic, &strangers::body(topic).unwrap())
    }

    fn of(topic: &'static Topic, body: &[u8]) -> Made {
        let said = said(topic, &Writer::new(topic.schema).unwrap(), body, "").unwrap();
        Made {
            topic,
            key: Some(said.key().into()),
            payload: Some(frame(KNOWN, body)),
            headers: vec![
                ("ce_specversion", "1.0".into()),
                ("ce_id", id(7).to_string()),
                ("ce_type", topic.name.into()),
                ("ce_source", format!("/{}", topic.publisher)),
                ("ce_time", said.occurred_at.to_rfc3339()),
                ("content-type", "application/avro".into()),
                ("traceparent", TRACE.into()),
            ],
            at: Timestamp::LogAppendTime(1),
        }
    }

    fn item(version: i64, event: u128) -> Made {
        let (sku, name, currency) = ("pen".into(), "Pen".into(), "EUR".into());
        let occurred_at = DateTime::default();
        let item = StockItem { sku, name, price_cents: 150, currency, version, occurred_at };
        let body = stock::ITEMS.codec().encode(&item).unwrap();
        Made::of(&stock::ITEMS, &body).with("ce_id", &id(event).to_string())
    }

    fn with(mut self, name: &str, value: &str) -> Made {
        let header = self.headers.iter_mut().find(|header| header.0 == name);
        header.expect("a header").1 = value.to_string();
        self
    }

    fn without(mut self, name: &str) -> Made {
        self.headers.retain(|header| header.0 != name);
        self
    }

    fn saying(self, payload: &[u8]) -> Made {
        Made { payload: Some(payload.to_vec()), ..self }
    }

    fn message(&self) -> OwnedMessage {
        let headers = self.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
        let (payload, key) = (self.payload.clone(), self.key.clone());
        OwnedMessage::new(payload, key, self.topic.name.to_string(), self.at, 0, 0, Some(headers))
    }
}

fn place(topic: &Topic, offset: usize) -> Place {
    Place { topic: facts::topic_number(topic), partition: 0, offset: offset as i64 }
}

/// What the reader makes of records of one topic that lie there one after the other.
fn read(records: &[Made]) -> Log {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let topic = records[0].topic;
    let mut reading = Reading {
        // A letter names the first of them.
        log: Log { missing: [place(topic, 0)].into(), ..Log::default() },
        writers: [(KNOWN, Some(Writer::new(topic.schema).unwrap())), (UNKNOWN, None)].into(),
        client: Client::at(Addresses::default()).unwrap(),
        handle: runtime.handle().clone(),
    };
    for (nth, record) in records.iter().enumerate() {
        reading.record(topic, place(topic, nth), &record.message()).unwrap();
    }
    reading.log
}

/// What the checker finds in them, where nobody set anything aside.
fn found(records: &[Made]) -> Vec<String> {
    let (letters, mut findings) = (Letters::default(), Findings::default());
    let around = Around { letters: &letters, kept_since: DateTime::default(), clocks_apart_ms: 0 };
    verify::check_records(&read(records), &around, &mut findings);
    findings.kinds()
}

#[test]
fn a_right_record_of_each_topic_is_read_and_nothing_is_wrong_with_it() {
    for topic in TOPICS {
        let log = read(&[Made::right(topic)]);
        assert_eq!(log.facts.len() + log.others.len() + log.items.len(), 1, "{}", topic.name);
        assert_eq!((log.records, log.announced), (1, 0), "{}", topic.name);
        assert!(log.missing.is_empty(), "a record lies where one was asked for");
        assert_eq!(found(&[Made::right(topic)]), [""; 0], "{}: {:?}", topic.name, log.faults);
    }
}

#[test]
fn each_header_that_is_wrong_or_missing_is_a_fault_of_the_envelope() {
    for topic in [&orders::CONFIRMED, &stock::ITEMS] {
        for name in
            ["ce_specversion", "ce_type", "ce_source", "ce_time", "content-type", "traceparent"]
        {
            for wrong in [Made::right(topic).with(name, "1.1"), Made::right(topic).without(name)] {
                let log = read(std::slice::from_ref(&wrong));
                let [(_, fault)] = &log.faults[..] else { panic!("{name}: {:?}", log.faults) };
                assert!(fault.contains(name), "{name}: {fault}");
                assert_eq!(found(&[wrong]), ["I12 envelope"], "{name}");
            }
        }
        let early = Made::right(topic).with("ce_time", "2026-11-20T09:44:35Z");
        assert_eq!(found(&[early]), ["I12 envelope"], "another time than the event's");
        for at in [Timestamp::CreateTime(1), Timestamp::NotAvailable] {
            assert_eq!(found(&[Made { at, ..Made::right(topic) }]), ["I12 envelope"]);
        }
        for key in [None, Some(b"another".to_vec())] {
            assert_eq!(found(&[Made { key, ..Made::right(topic) }]), ["I12 envelope"]);
        }
    }
}

#[test]
fn a_record_that_is_no_event_is_foreign_in_every_topic_also_where_nobody_reads() {
    for topic in TOPICS {
        let body = strangers::body(topic).unwrap();
        let right = || Made::right(topic);
        let wrong = [
            ("it is empty", Made { payload: None, ..right() }),
            ("", right().saying(&[])),
            ("", right().saying(&[&[1], &frame(KNOWN, &body)[1..]].concat())),
            ("the registry has no schema 2", right().saying(&frame(UNKNOWN, &body))),
            ("not exactly one record", right().saying(&frame(KNOWN, &body[..body.len() - 1]))),
            ("not exactly one record", right().saying(&frame(KNOWN, &[&body[..], &[0]].concat()))),
            ("it has no ce_id", right().without("ce_id")),
            ("its ce_id is no UUID", right().with("ce_id", "7")),
        ];
        let is_read = !topic.subscribers.is_empty();
        for (why, wrong) in wrong {
            let log = read(std::slice::from_ref(&wrong));
            let [Foreign { place: at, hash, reason }] = &log.foreign[..] else {
                panic!("{}: {why}: {:?}", topic.name, log.foreign)
            };
            assert_eq!((*at, log.facts.len() + log.items.len()), (place(topic, 0), 0));
            assert_eq!(hash[..], Sha256::digest(wrong.payload.as_deref().unwrap_or_default())[..]);
            assert!(reason.contains(why), "{}: {reason}, not {why}", topic.name);
            let meant = if is_read { "I10 foreign" } else { "I12 foreign" };
            assert_eq!(found(&[wrong]), [meant], "{}: {why}", topic.name);
        }
    }
}

#[test]
fn the_versions_of_an_item_arrive_in_ascending_order_and_a_repeat_may_come_later() {
    let newest = |log: &Log| log.items["pen"].1.version;
    let right = [Made::item(1, 1), Made::item(2, 2), Made::item(3, 3), Made::item(3, 3)];
    assert_eq!((found(&right), newest(&read(&right))), (vec![], 3));
    let overtaken = [Made::item(1, 1), Made::item(3, 3), Made::item(2, 2)];
    assert_eq!(found(&overtaken), ["I9 overtaken"]);
    assert_eq!(read(&overtaken).overtaken[0].0, place(&stock::ITEMS, 2));
    // Announced or sent again: not out of order, but it is what compaction keeps.
    let repeated = [Made::item(1, 1), Made::item(2, 2), Made::item(1, 1)];
    assert_eq!((found(&repeated), newest(&read(&repeated))), (vec![], 1));
}

#[test]
fn a_record_that_was_announced_again_is_told_by_its_trace_and_no_other_is() {
    let right = Made::right(&orders::CONFIRMED);
    let key = String::from_utf8(right.key.clone().unwrap()).unwrap();
    let log = read(&[right.with("traceparent", &announce::traceparent(&key))]);
    assert_eq!((log.announced, log.facts[0].announced, log.faults), (1, true, vec![]));
    let of_another = Made::right(&orders::CONFIRMED);
    let log = read(&[of_another.with("traceparent", &announce::traceparent("another"))]);
    assert_eq!((log.announced, log.facts[0].announced), (0, false));
}

#[test]
fn a_traceparent_is_read_strictly() {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    assert_eq!(trace_id(&format!("00-{trace}-00f067aa0ba902b7-01")), Some(trace));
    for bad in [
        String::new(),
        format!("00-{trace}-00f067aa0ba902b7"),
        format!("00-{trace}-0000000000000000-01"),
        format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
        format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
    ] {
        assert_eq!(trace_id(&bad), None, "{bad}");
    }
}
