//! Records made by hand, valid and invalid, and what the reader makes of each.

use crate::stack_description::{SERVICES, subscribers};
use chassis::admin::republish;
use chassis::event::avro::frame;
use chassis::event::{Event, Topic};
use checker::WriterSchemas;
use checker::dead_letters::DeadLetterIndex;
use checker::record::UnknownRecord;
use chrono::DateTime;
use events::orders::OrderConfirmed;
use events::saga_topics;
use events::stock::StockItem;
use rdkafka::Timestamp;
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};
use sha2::{Digest, Sha256};

use super::*;
use crate::checker::findings::Findings;
use crate::checker::records;
use crate::checker::test_cases::{context, id};
use crate::client::sample_events;

/// The registry has a schema with the first id, and none with the second.
const KNOWN_SCHEMA: u32 = 1;
const MISSING_SCHEMA: u32 = 2;

const TRACEPARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A record as it is stored in a topic.
struct TestRecord {
    topic: &'static Topic,
    key: Option<Vec<u8>>,
    payload: Option<Vec<u8>>,
    headers: Vec<(&'static str, String)>,
    timestamp: Timestamp,
}

impl TestRecord {
    /// A valid record, as its publisher makes it.
    fn valid(topic: &'static Topic) -> TestRecord {
        TestRecord::with_body(topic, &sample_events::valid_body(topic).unwrap())
    }

    fn with_body(topic: &'static Topic, body: &[u8]) -> TestRecord {
        let event =
            decode_record(topic, &WriterSchema::new(topic.schema).unwrap(), body, "").unwrap();
        TestRecord {
            topic,
            key: Some(event.key.into()),
            payload: Some(frame(KNOWN_SCHEMA, body)),
            headers: vec![
                ("ce_specversion", "1.0".into()),
                ("ce_id", id(7).to_string()),
                ("ce_type", topic.name.into()),
                ("ce_source", format!("/{}", topic.publisher)),
                ("ce_time", event.occurred_at.to_rfc3339()),
                ("content-type", "application/avro".into()),
                ("traceparent", TRACEPARENT.into()),
            ],
            timestamp: Timestamp::LogAppendTime(1),
        }
    }

    fn item(version: i64, event: u128) -> TestRecord {
        let (sku, name, currency) = ("pen".into(), "Pen".into(), "EUR".into());
        let occurred_at = DateTime::default();
        let item = StockItem { sku, name, price_cents: 150, currency, version, occurred_at };
        let body = StockItem::topic().codec().encode(&item).unwrap();
        TestRecord::with_body(StockItem::topic(), &body)
            .with_header("ce_id", &id(event).to_string())
    }

    fn with_header(self, name: &'static str, value: &str) -> TestRecord {
        let mut record = self.without_header(name);
        record.headers.push((name, value.to_string()));
        record
    }

    fn without_header(mut self, name: &str) -> TestRecord {
        self.headers.retain(|header| header.0 != name);
        self
    }

    fn with_payload(self, payload: &[u8]) -> TestRecord {
        TestRecord { payload: Some(payload.to_vec()), ..self }
    }

    fn message(&self) -> OwnedMessage {
        let headers = self.headers.iter().fold(OwnedHeaders::new(), |headers, (key, value)| {
            headers.insert(Header { key, value: Some(value) })
        });
        let (payload, key) = (self.payload.clone(), self.key.clone());
        OwnedMessage::new(
            payload,
            key,
            self.topic.name.to_string(),
            self.timestamp,
            0,
            0,
            Some(headers),
        )
    }
}

fn position(topic: &'static Topic, offset: usize) -> RecordPosition {
    RecordPosition { topic, partition: 0, offset: offset as i64 }
}

/// The snapshot after these records of one topic.
fn read_records(records: &[TestRecord]) -> TopicsSnapshot {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    let topic = records[0].topic;
    let mut schemas = WriterSchemas::new("http://127.0.0.1:1", None).unwrap();
    schemas.insert(KNOWN_SCHEMA, Some(WriterSchema::new(topic.schema).unwrap()));
    schemas.insert(MISSING_SCHEMA, None);
    // A dead letter names the first of them.
    let mut snapshot =
        TopicsSnapshot { missing: [position(topic, 0)].into(), ..TopicsSnapshot::default() };
    for (nth, record) in records.iter().enumerate() {
        snapshot.add_record(position(topic, nth), &record.message(), &mut schemas).unwrap();
    }
    snapshot
}

/// The findings about these records, without a dead letter.
fn findings_of(records: &[TestRecord]) -> Vec<String> {
    let (dead_letters, mut findings) = (DeadLetterIndex::default(), Findings::default());
    let (log, context) = (read_records(records), context(&dead_letters));
    records::check_records(&log, &SERVICES, &context, &mut findings);
    findings.kinds()
}

#[test]
fn a_valid_record_of_each_topic_is_read_without_a_finding() {
    for topic in saga_topics() {
        let log = read_records(&[TestRecord::valid(topic)]);
        assert_eq!(
            log.kept.of_orders.len() + log.kept.others.len() + log.kept.items.len(),
            1,
            "{}",
            topic.name
        );
        assert_eq!((log.records, log.kept.republished), (1, 0), "{}", topic.name);
        assert!(log.missing.is_empty(), "the requested position has a record");
        assert_eq!(
            findings_of(&[TestRecord::valid(topic)]),
            [""; 0],
            "{}: {:?}",
            topic.name,
            log.kept.envelope_faults
        );
    }
}

#[test]
fn each_header_that_is_wrong_or_missing_is_a_fault_of_the_envelope() {
    for topic in [OrderConfirmed::topic(), StockItem::topic()] {
        for name in
            ["ce_specversion", "ce_type", "ce_source", "ce_time", "content-type", "traceparent"]
        {
            for wrong in [
                TestRecord::valid(topic).with_header(name, "1.1"),
                TestRecord::valid(topic).without_header(name),
            ] {
                let log = read_records(std::slice::from_ref(&wrong));
                let [(_, fault)] = &log.kept.envelope_faults[..] else {
                    panic!("{name}: {:?}", log.kept.envelope_faults)
                };
                assert!(fault.contains(name), "{name}: {fault}");
                assert_eq!(findings_of(&[wrong]), ["I12 envelope"], "{name}");
            }
        }
        let own = &topic.codec().dataschema;
        assert_eq!(
            findings_of(&[TestRecord::valid(topic).with_header("ce_dataschema", own)]),
            [""; 0]
        );
        let other = TestRecord::valid(topic).with_header("ce_dataschema", "urn:avro:sha-256:0");
        assert_eq!(findings_of(&[other]), ["I12 envelope"], "another schema");
        let early = TestRecord::valid(topic).with_header("ce_time", "2026-11-20T09:44:35Z");
        assert_eq!(findings_of(&[early]), ["I12 envelope"], "another time than the event's");
        for timestamp in [Timestamp::CreateTime(1), Timestamp::NotAvailable] {
            assert_eq!(
                findings_of(&[TestRecord { timestamp, ..TestRecord::valid(topic) }]),
                ["I12 envelope"]
            );
        }
        for key in [None, Some(b"another".to_vec())] {
            assert_eq!(
                findings_of(&[TestRecord { key, ..TestRecord::valid(topic) }]),
                ["I12 envelope"]
            );
        }
    }
}

#[test]
fn a_record_that_is_no_event_is_unknown_in_every_topic_also_without_subscribers() {
    for topic in saga_topics() {
        let body = sample_events::valid_body(topic).unwrap();
        let right = || TestRecord::valid(topic);
        let wrong = [
            ("it is empty", TestRecord { payload: None, ..right() }),
            ("", right().with_payload(&[])),
            ("", right().with_payload(&[&[1], &frame(KNOWN_SCHEMA, &body)[1..]].concat())),
            ("the registry has no schema 2", right().with_payload(&frame(MISSING_SCHEMA, &body))),
            (
                "not exactly one record",
                right().with_payload(&frame(KNOWN_SCHEMA, &body[..body.len() - 1])),
            ),
            (
                "not exactly one record",
                right().with_payload(&frame(KNOWN_SCHEMA, &[&body[..], &[0]].concat())),
            ),
            ("it has no ce_id", right().without_header("ce_id")),
            ("its ce_id is not a UUID", right().with_header("ce_id", "7")),
        ];
        let is_read = !subscribers(topic).is_empty();
        for (why, wrong) in wrong {
            let log = read_records(std::slice::from_ref(&wrong));
            let [UnknownRecord { position: at, hash, reason }] = &log.unknown[..] else {
                panic!("{}: {why}: {:?}", topic.name, log.unknown)
            };
            assert_eq!(
                (*at, log.kept.of_orders.len() + log.kept.items.len()),
                (position(topic, 0), 0)
            );
            assert_eq!(hash[..], Sha256::digest(wrong.payload.as_deref().unwrap_or_default())[..]);
            assert!(reason.contains(why), "{}: {reason}, not {why}", topic.name);
            let meant = if is_read { "I10 unknown" } else { "I12 unknown" };
            assert_eq!(findings_of(&[wrong]), [meant], "{}: {why}", topic.name);
        }
    }
}

#[test]
fn the_versions_of_an_item_arrive_in_ascending_order_and_a_duplicate_may_come_later() {
    let newest = |log: &TopicsSnapshot| log.kept.items["pen"].1.version;
    let right = [
        TestRecord::item(1, 1),
        TestRecord::item(2, 2),
        TestRecord::item(3, 3),
        TestRecord::item(3, 3),
    ];
    assert_eq!((findings_of(&right), newest(&read_records(&right))), (vec![], 3));
    let overtaken = [TestRecord::item(1, 1), TestRecord::item(3, 3), TestRecord::item(2, 2)];
    assert_eq!(findings_of(&overtaken), ["I9 overtaken"]);
    assert_eq!(read_records(&overtaken).kept.out_of_order[0].0, position(StockItem::topic(), 2));
    // Republished or sent again: it is not out of order, but compaction keeps it.
    let repeated = [TestRecord::item(1, 1), TestRecord::item(2, 2), TestRecord::item(1, 1)];
    assert_eq!((findings_of(&repeated), newest(&read_records(&repeated))), (vec![], 1));
}

#[test]
fn a_republished_record_is_recognised_by_its_trace_and_no_other_is() {
    let right = TestRecord::valid(OrderConfirmed::topic());
    let key = String::from_utf8(right.key.clone().unwrap()).unwrap();
    let log = read_records(&[right.with_header("traceparent", &republish::traceparent(&key))]);
    assert_eq!(
        (log.kept.republished, log.kept.of_orders[0].republished, log.kept.envelope_faults),
        (1, true, vec![])
    );
    let of_another = TestRecord::valid(OrderConfirmed::topic());
    let log =
        read_records(&[of_another.with_header("traceparent", &republish::traceparent("another"))]);
    assert_eq!((log.kept.republished, log.kept.of_orders[0].republished), (0, false));
}
