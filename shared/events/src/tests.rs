//! Structs and schemas agree, in both directions.

use chassis::Event;
use chassis::event::declared_events;
use chrono::DateTime;
use contracts::checks::{self, assert_matches_schema};
use serde_json::Value;
use uuid::Uuid;

use crate::insights;
use crate::{orders, orders::*, payments::*, saga_topics, shipments::*, stock::*, topics};

const SCHEMAS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas");

const ID: Uuid = Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_89ab_cdef);

fn now() -> chrono::DateTime<chrono::Utc> {
    DateTime::from_timestamp_micros(1_795_132_800_123_456).unwrap()
}

#[test]
fn every_struct_writes_and_reads_exactly_its_schema() {
    checks::assert_round_trips(declared_events());
}

/// The schema yields no event with a symbol that it lacks, so each variant is written here.
#[test]
fn every_variant_is_a_symbol_of_its_schema() {
    let (order_id, occurred_at) = (ID, now());
    for reason in [
        CancelReason::PaymentDeclined,
        CancelReason::StockRejected,
        CancelReason::Customer,
        CancelReason::Deadline,
        CancelReason::Unknown,
    ] {
        assert_matches_schema(&OrderCancelled { order_id, reason, occurred_at });
    }
    for reason in [
        DeclineReason::InsufficientFunds,
        DeclineReason::NoAccount,
        DeclineReason::CurrencyMismatch,
        DeclineReason::Unknown,
    ] {
        assert_matches_schema(&PaymentDeclined { order_id, reason, occurred_at });
    }
    for reason in [
        FailReason::Refused,
        FailReason::Lost,
        FailReason::GivenUp,
        FailReason::Cancelled,
        FailReason::Unknown,
    ] {
        assert_matches_schema(&ShipmentFailed { order_id, reason, occurred_at });
    }
    for reason in [RejectReason::OutOfStock, RejectReason::NoSuchItem, RejectReason::Unknown] {
        let sku = "pen".to_string();
        assert_matches_schema(&StockRejected {
            order_id,
            reason,
            sku,
            requested: 2,
            available: 1,
            occurred_at,
        });
    }
}

#[test]
fn the_stream_processor_may_read_topics_that_exist() {
    let read = insights::GRANTS.iter().filter(|grant| !grant.is_prefix);
    let read = read.filter(|grant| grant.resource == contracts::grants::AclResource::Topic);
    for grant in read {
        assert!(saga_topics().iter().any(|topic| topic.name == grant.name), "{}", grant.name);
    }
}

#[test]
fn a_currency_is_three_capital_letters_and_nothing_else() {
    assert_eq!(crate::parse_currency("EUR"), Ok("EUR".into()));
    for no_code in ["", "EU", "EURO", "eur", "EU ", "E1R", "E\0R", "ÄR", "€"] {
        assert!(crate::parse_currency(no_code).is_err(), "{no_code:?}");
    }
}

#[test]
fn every_schema_file_is_one_declared_topic_and_documents_its_fields() {
    checks::assert_schema_files(topics(), SCHEMAS);
    checks::assert_documented(topics());
}

#[test]
fn every_personal_field_is_in_a_personal_topic() {
    checks::assert_personal_fields(topics());
}

#[test]
fn every_consumer_keeps_its_inbox_for_longer_than_a_topic_can_redeliver() {
    checks::assert_inbox_outlasts_retention(saga_topics());
}

/// `make schema` records a new version.
#[test]
fn every_recorded_version_and_the_current_one_can_read_each_other() {
    checks::assert_versions(SCHEMAS);
}

#[test]
fn a_reader_survives_additions_of_a_newer_writer() {
    use chassis::event::avro::Codec;
    let mut newer: Value = serde_json::from_str(orders::OrderCancelled::topic().schema).unwrap();
    let fields = newer["fields"].as_array_mut().unwrap();
    fields[1]["type"]["symbols"].as_array_mut().unwrap().push("fraud".into());
    fields.push(serde_json::json!({"name": "note", "type": ["null", "string"], "default": null}));
    let newer = Codec::new(&newer.to_string()).unwrap();

    #[derive(serde::Serialize)]
    #[serde(rename_all = "snake_case")]
    enum CancelReason {
        Fraud,
    }
    #[derive(serde::Serialize)]
    struct OrderCancelled {
        order_id: Uuid,
        reason: CancelReason,
        occurred_at: i64,
        note: Option<&'static str>,
    }
    let event = OrderCancelled {
        order_id: ID,
        reason: CancelReason::Fraud,
        occurred_at: 1,
        note: Some("seen before"),
    };
    let body = newer.encode(&event).unwrap();
    let codec = orders::OrderCancelled::topic().codec();
    let read: orders::OrderCancelled = codec.decode(&newer, &body).unwrap();
    assert_eq!((read.order_id, read.reason), (ID, orders::CancelReason::Unknown));
    for end in 0..body.len() {
        assert!(codec.decode::<orders::OrderCancelled>(&newer, &body[..end]).is_err());
    }
}

#[test]
fn a_text_that_looks_like_another_is_not_a_sku() {
    for sku in
        ["wool-cap", "a b", "a/b", "½".replace('½', "1/2").as_str(), "Kaffee-Öl", "帽子", "x"]
    {
        assert!(is_sku(sku), "{sku:?}");
    }
    for (text, why) in [
        ("", "empty"),
        (" wool-cap", "a blank first"),
        ("wool-cap ", "a blank last"),
        ("wool-cap\u{a0}", "a blank that does not break"),
        ("\u{3000}wool-cap", "a wide blank"),
        ("wool\u{2028}cap", "an end of line"),
        ("wool\u{2003}cap", "another blank than the space"),
        ("wool\tcap", "a control character"),
        ("wool\u{85}cap", "a control character of C1"),
        ("wool\u{200b}cap", "a space of no width"),
        ("wool\u{200d}cap", "a joiner"),
        ("wool\u{ad}cap", "a soft hyphen"),
        ("wool\u{202e}cap", "a change of direction"),
        ("\u{feff}wool-cap", "a byte order mark"),
        ("wool\u{2060}cap", "a word joiner"),
        ("wool\u{34f}cap", "a joiner of graphemes"),
        ("wool-cap\u{fe0f}", "a variation selector"),
        ("wool\u{e0061}cap", "a tag"),
        ("wool\u{3164}cap", "a filler"),
        ("O\u{308}l", "decomposed"),
        ("\u{212b}-ring", "the sign of a unit"),
        ("ﬁlter", "a ligature"),
        ("ｗｏｏｌ", "wide letters"),
        ("m²", "a raised digit"),
        (&"x".repeat(65), "too long"),
    ] {
        assert!(!is_sku(text), "{why}");
    }
}

#[test]
fn a_name_is_trimmed_and_composed_and_may_have_what_scripts_and_symbols_need() {
    for name in ["Deck lantern, storm-proof", "½ m² Ölzeug™", "می‌خواهم", "👩‍🚀 suit ❤️", "x"]
    {
        assert!(is_name(name), "{name:?}");
    }
    for name in [
        "",
        " Cap",
        "Cap\u{2003}",
        "C\u{200b}ap",
        "C\u{202e}ap",
        "O\u{308}l",
        "a\nb",
        &"x".repeat(201),
    ] {
        assert!(!is_name(name), "{name:?}");
    }
}
