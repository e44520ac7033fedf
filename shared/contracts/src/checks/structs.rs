//! Checks of structs: each is written and read with exactly the schema of its topic.

use std::collections::BTreeSet;
use std::fmt::{Debug, Display};

use chassis::event::{DeclaredEvent, Event, Topic};

use crate::checks::schemas::parse_schema;
use crate::samples;

/// Checks that the struct of each event is written and read with exactly the schema of its topic: what it writes of an
/// event that it has read is that event. The events are made from the schema ([`samples::events`]). Each body that is
/// too short or has a byte too many must not be read.
///
/// # Panics
/// If that is not so, or no event can be made from a schema.
#[track_caller]
pub fn assert_round_trips(events: &[&DeclaredEvent]) {
    for event in events {
        let topic = event.topic;
        let recode = |body: &[u8]| event.recode(topic.codec(), body);
        let samples = samples::events(topic).unwrap_or_else(|why| panic!("{topic:?}: {why:#}"));
        for sample in samples {
            let body = samples::encode(topic.schema, sample.clone());
            let body = body.unwrap_or_else(|why| panic!("{topic:?}: {why:#}: {sample}"));
            let again = recode(&body).unwrap_or_else(|why| panic!("{topic:?}: {why}: {sample}"));
            assert!(again == body, "{topic:?}: the struct changes the event {sample}");
            assert_whole_body(topic, &body, |body| recode(body).is_ok(), &sample);
        }
    }
}

/// Checks that a struct is written and read with exactly the schema of its topic: the event is the
/// same after encoding and decoding, and the struct and the schema have the same fields. Each body
/// that is too short or has a byte too many must not decode.
///
/// Call it with one event for each variant of an enum, and with and without each optional value.
///
/// # Panics
/// If that is not so.
#[track_caller]
pub fn assert_matches_schema<E: Event + PartialEq + Debug>(event: &E) {
    let topic = E::topic();
    let codec = topic.codec();
    let body = codec.encode(event).unwrap_or_else(|why| panic!("{topic:?}: {why}: {event:?}"));
    let decode = |body: &[u8]| codec.decode::<E>(codec, body);
    let decoded = decode(&body).unwrap_or_else(|why| panic!("{topic:?}: {why}: {event:?}"));
    assert_eq!(&decoded, event, "{topic:?}");

    let written = serde_json::to_value(event).unwrap_or_default();
    let fields: BTreeSet<&str> = written
        .as_object()
        .into_iter()
        .flat_map(|fields| fields.keys().map(|key| &**key))
        .collect();
    let schema = parse_schema(topic);
    let declared = schema["fields"].as_array().into_iter().flatten();
    let declared: BTreeSet<&str> = declared.filter_map(|field| field["name"].as_str()).collect();
    assert_eq!(fields, declared, "the fields of the struct are those of the schema of {topic:?}");

    assert_whole_body(topic, &body, |body| decode(body).is_ok(), format_args!("{event:?}"));
}

/// Checks that a body is read as a whole or not at all.
#[track_caller]
fn assert_whole_body(
    topic: &Topic,
    body: &[u8],
    is_read: impl Fn(&[u8]) -> bool,
    event: impl Display,
) {
    for end in 0..body.len() {
        assert!(!is_read(&body[..end]), "{topic:?}: cut at {end}: {event}");
    }
    assert!(!is_read(&[body, &[0]].concat()), "{topic:?}: a byte too many: {event}");
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::checks::tests::SOLD_TOPIC;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sold {
        paid: i64,
        /// No field of the schema.
        #[serde(skip_serializing_if = "Option::is_none")]
        tip: Option<i64>,
    }

    impl Event for Sold {
        fn topic() -> &'static Topic {
            &SOLD_TOPIC
        }
        fn key(&self) -> String {
            String::new()
        }
    }

    #[test]
    #[should_panic(expected = "shop.sold")]
    fn a_struct_with_a_field_that_the_schema_lacks_is_found() {
        assert_matches_schema(&Sold { paid: 7, tip: Some(1) });
    }

    static SOLD_EVENT: DeclaredEvent = DeclaredEvent::new::<Sold>(&SOLD_TOPIC);

    #[test]
    #[should_panic(expected = "shop.sold: Missing field")]
    fn a_struct_that_needs_a_field_that_its_schema_lacks_is_found() {
        assert_round_trips(&[&SOLD_EVENT]);
    }

    #[test]
    #[should_panic(expected = "shop.sold")]
    fn a_struct_without_a_field_of_its_schema_is_found() {
        const TIPPED: &str = r#"{"type": "record", "name": "Sold", "fields": [
            {"name": "paid", "type": "long"}, {"name": "tip", "type": "long", "default": 0}]}"#;
        static TIPPED_TOPIC: Topic = Topic::new("shop.sold", "shop", TIPPED);
        #[derive(Serialize, Deserialize)]
        #[serde(rename = "Sold")]
        struct Untipped {
            paid: i64,
        }
        impl Event for Untipped {
            fn topic() -> &'static Topic {
                &TIPPED_TOPIC
            }
            fn key(&self) -> String {
                String::new()
            }
        }
        assert_round_trips(&[&DeclaredEvent::new::<Untipped>(&TIPPED_TOPIC)]);
    }
}
