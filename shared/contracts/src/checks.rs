//! Checks of contracts, for the tests of the crate that declares the topics.
//!
//! Each function is one check. It panics with the topic and the reason if the check fails, and
//! needs neither Kafka nor a registry. A test names what the check holds:
//!
//! ```no_run
//! # use chassis::event::Topic;
//! # static TOPICS: [&Topic; 0] = [];
//! #[test]
//! fn every_recorded_version_and_the_current_one_can_read_each_other() {
//!     contracts::checks::assert_versions(concat!(env!("CARGO_MANIFEST_DIR"), "/schemas"));
//! }
//! ```

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

use chassis::event::avro::Undecodable;
use chassis::event::{DataClass, DeclaredEvent, Event, Retention, Topic};
use serde_json::Value;

use crate::{Contracts, samples, versions};

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
        let recode =
            |body: &[u8]| -> Result<Vec<u8>, Undecodable> { event.recode(topic.codec(), body) };
        let samples = samples::events(topic).unwrap_or_else(|why| panic!("{topic:?}: {why:#}"));
        for sample in samples {
            let body = samples::encode(topic.schema, sample.clone());
            let body = body.unwrap_or_else(|why| panic!("{topic:?}: {why:#}: {sample}"));
            let again = recode(&body).unwrap_or_else(|why| panic!("{topic:?}: {why}: {sample}"));
            assert!(again == body, "{topic:?}: the struct changes the event {sample}");
            for end in 0..body.len() {
                assert!(recode(&body[..end]).is_err(), "{topic:?}: cut at {end}: {sample}");
            }
            let longer = [&body[..], &[0]].concat();
            assert!(recode(&longer).is_err(), "{topic:?}: a byte too many: {sample}");
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

    for end in 0..body.len() {
        assert!(decode(&body[..end]).is_err(), "{topic:?}: cut at {end}: {event:?}");
    }
    let longer = [&body[..], &[0]].concat();
    assert!(decode(&longer).is_err(), "{topic:?}: a byte too many: {event:?}");
}

/// Checks that each topic has its schema in the file `<topic>.avsc` of a folder, and that the
/// folder has nothing else except `versions`.
///
/// # Panics
/// If a file is missing, is left over, or differs from the schema that was compiled in, or if the
/// folder cannot be read.
#[track_caller]
pub fn assert_schema_files(topics: &[&Topic], folder: impl AsRef<Path>) {
    let folder = folder.as_ref();
    let entries = folder.read_dir().unwrap_or_else(|why| panic!("{}: {why}", folder.display()));
    let files: BTreeSet<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name != "versions")
        .collect();
    let file_of = |topic: &Topic| format!("{}.avsc", topic.name);
    let declared: BTreeSet<String> = topics.iter().map(|topic| file_of(topic)).collect();
    assert_eq!(files, declared, "the files of {} are the topics", folder.display());
    for topic in topics {
        let text = std::fs::read_to_string(folder.join(file_of(topic))).unwrap_or_default();
        assert!(
            text == topic.schema,
            "the file of {topic:?} differs from the schema that was compiled in"
        );
    }
}

/// Checks that every record, enum and field of every schema has a `doc`, and that every enum has
/// the default `unknown`, so that a reader survives a symbol that it does not know. This includes
/// those inside a union, an array or a map.
///
/// # Panics
/// If one has none, or if a schema is no JSON.
#[track_caller]
pub fn assert_documented(topics: &[&Topic]) {
    for topic in topics {
        assert_type_documented(topic.name, &parse_schema(topic));
    }
}

fn parse_schema(topic: &Topic) -> Value {
    serde_json::from_str(topic.schema).unwrap_or_else(|why| panic!("{topic:?}: {why}"))
}

#[track_caller]
fn assert_type_documented(topic: &str, schema: &Value) {
    if let Some(kind @ ("record" | "enum")) = schema["type"].as_str() {
        assert!(schema["doc"].is_string(), "{topic}: {} has no doc", schema["name"]);
        assert!(
            kind != "enum" || schema["default"] == "unknown",
            "{topic}: an enum lacks its default"
        );
    }
    for field in schema["fields"].as_array().into_iter().flatten() {
        assert!(field["doc"].is_string(), "{topic}: {} has no doc", field["name"]);
        assert_type_documented(topic, &field["type"]);
    }
    let variants = schema.as_array().into_iter().flatten();
    for within in variants.chain(["items", "values"].iter().filter_map(|of| schema.get(of))) {
        assert_type_documented(topic, within);
    }
}

/// Checks that what is personal lies in topics of the class that protects it: a field with the attribute
/// `"personal": true` is in a personal topic, a personal topic has such a field, and fields of one name are all
/// personal or none of them is.
///
/// # Panics
/// If that is not so, or if a schema is no JSON.
#[track_caller]
pub fn assert_personal_fields(topics: &[&Topic]) {
    let fields: Vec<(&Topic, Vec<(String, bool)>)> = topics
        .iter()
        .map(|topic| {
            let mut fields = Vec::new();
            collect_fields(&parse_schema(topic), &mut fields);
            (*topic, fields)
        })
        .collect();
    let all = fields.iter().flat_map(|(_, fields)| fields);
    let personal: BTreeSet<&str> = all.filter(|it| it.1).map(|(name, _)| &**name).collect();
    for (topic, fields) in &fields {
        let is_personal = topic.is_personal();
        for (name, is_marked) in fields {
            assert!(
                *is_marked || !personal.contains(&**name),
                "{topic:?}: {name} is personal in another place, and lacks its mark here"
            );
            assert!(
                !*is_marked || is_personal,
                "{topic:?}: {name} is personal, and the topic is not"
            );
        }
        let has_mark = fields.iter().any(|it| it.1);
        assert!(!is_personal || has_mark, "{topic:?} is personal, and none of its fields is");
    }
}

/// Every field of a schema and of the schemas in it, with whether it is marked as personal.
fn collect_fields(schema: &Value, fields: &mut Vec<(String, bool)>) {
    let is_named_type = matches!(schema["type"].as_str(), Some("record" | "enum" | "fixed"));
    if let Some(name) = schema["name"].as_str().filter(|_| !is_named_type) {
        fields.push((name.to_string(), schema["personal"] == true));
    }
    match schema {
        Value::Array(parts) => parts.iter().for_each(|part| collect_fields(part, fields)),
        Value::Object(parts) => parts
            .iter()
            .filter(|(part, _)| *part != "default")
            .for_each(|(_, part)| collect_fields(part, fields)),
        _ => {}
    }
}

/// Checks that the readers of each personal topic are the services that consume it.
///
/// # Panics
/// If a service consumes a topic and is not among its readers, which it does not start with, or if a reader consumes it
/// no more.
#[track_caller]
pub fn assert_readers(contracts: &Contracts) {
    for topic in &contracts.topics {
        if let DataClass::Personal { readers } = topic.class {
            let subscribers = contracts.subscriptions.subscribers(topic);
            let [readers, subscribers] =
                [readers, &subscribers].map(|names| names.iter().copied().collect::<BTreeSet<_>>());
            assert_eq!(readers, subscribers, "the readers of {topic:?}, and who consumes it");
        }
    }
}

/// Checks that consumers keep their inbox for longer than Kafka can redeliver an event of these
/// topics. Otherwise an event could have its effect twice.
///
/// # Panics
/// If a topic is kept for too long.
#[track_caller]
pub fn assert_inbox_outlasts_retention(topics: &[&Topic]) {
    for topic in topics {
        if let Retention::Days(days) = topic.retention {
            // A segment is deleted as a whole, up to a week after its first record has expired.
            let gone = Duration::from_secs(u64::from(days + 7) * 86_400);
            assert!(gone < chassis::inbox::RETENTION, "{topic:?} is kept for {days} days");
        }
    }
}

/// Checks the schemas of a folder against their recorded versions in its folder `versions`: each
/// schema is its newest version, it and every version can read each other, and no version was
/// changed, renumbered or lost. `contracts record` records a version.
///
/// # Panics
/// If that is not so, with all reasons, or if a file cannot be read.
#[track_caller]
pub fn assert_versions(folder: impl AsRef<Path>) {
    let violations = versions::violations(folder.as_ref()).unwrap_or_else(|why| panic!("{why:#}"));
    assert!(violations.is_empty(), "\n  {}\n", violations.join("\n  "));
}

/// Checks that a file is the AsyncAPI document of these contracts. `contracts asyncapi` writes it.
///
/// # Panics
/// If the file differs or cannot be read, or if a schema is not valid Avro.
#[track_caller]
pub fn assert_asyncapi_file(contracts: &Contracts, file: impl AsRef<Path>) {
    let document = contracts.asyncapi().unwrap_or_else(|why| panic!("{why:#}"));
    assert_written_by("asyncapi", &document, file.as_ref());
}

/// Checks that a file has the users of Kafka with their rights, without those of the features, or those of one feature alone.
/// `contracts users` writes it.
///
/// # Panics
/// If the file differs or cannot be read, or the system has no such feature.
#[track_caller]
pub fn assert_users_file(contracts: &Contracts, feature: Option<&str>, file: impl AsRef<Path>) {
    let users = contracts.kafka_users(feature).unwrap_or_else(|why| panic!("{why:#}"));
    let command = feature.map_or("users".to_owned(), |feature| format!("users {feature}"));
    assert_written_by(&command, &users, file.as_ref());
}

/// Checks that a file has the topics as objects of Strimzi. `contracts topics` writes it.
///
/// # Panics
/// If the file differs or cannot be read.
#[track_caller]
pub fn assert_topics_file(contracts: &Contracts, file: impl AsRef<Path>) {
    assert_written_by("topics", &contracts.kafka_topics(), file.as_ref());
}

#[track_caller]
fn assert_written_by(command: &str, document: &str, file: &Path) {
    let written =
        std::fs::read_to_string(file).unwrap_or_else(|why| panic!("{}: {why}", file.display()));
    let pairs = written.lines().zip(document.lines()).zip(1..);
    let first = pairs.filter(|((was, is), _)| was != is).map(|(_, line)| line).next();
    assert!(
        written == document,
        "{} is not what `contracts {command}` writes{}",
        file.display(),
        first.map(|line| format!(", from line {line} on")).unwrap_or_default()
    );
}

#[cfg(test)]
mod tests {
    use chassis::event::Subscriptions;
    use serde::{Deserialize, Serialize};

    use super::*;

    const SOLD: &str = r#"{"type": "record", "name": "Sold", "doc": "Sold.", "fields": [
        {"name": "paid", "type": "long", "doc": "How much."}]}"#;

    static SOLD_TOPIC: Topic = Topic::new("shop.sold", "shop", SOLD);

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

    #[test]
    #[should_panic(expected = "the readers of shop.named")]
    fn a_reader_that_consumes_nothing_is_found() {
        let subscriptions = Subscriptions::new([("books", vec![&SOLD_TOPIC])]);
        let topics = [&SOLD_TOPIC, &NAMED_TOPIC];
        assert_readers(&Contracts::new("shop", "1", &topics, subscriptions));
    }

    #[test]
    #[should_panic(expected = "that was compiled in")]
    fn a_file_with_another_schema_than_its_topic_is_found() {
        let folder = std::env::temp_dir().join(format!("contracts-files-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("shop.sold.avsc"), SOLD).unwrap();
        assert_schema_files(&[&SOLD_TOPIC], &folder);
        std::fs::write(folder.join("shop.sold.avsc"), SOLD.replace("Sold.", "Gone.")).unwrap();
        let checked = std::panic::catch_unwind(|| assert_schema_files(&[&SOLD_TOPIC], &folder));
        std::fs::remove_dir_all(&folder).unwrap();
        checked.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    }

    #[test]
    #[should_panic(expected = "are the topics")]
    fn a_file_without_a_topic_is_found() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/lending/schemas");
        assert_schema_files(&[], folder);
    }

    #[test]
    #[should_panic(expected = "shop.sold: \"paid\" has no doc")]
    fn a_field_without_a_doc_is_found() {
        let text = SOLD.replace(r#", "doc": "How much.""#, "");
        let schema = serde_json::from_str(&text).unwrap();
        assert_type_documented("shop.sold", &schema);
    }

    #[test]
    #[should_panic(expected = "an enum lacks its default")]
    fn an_enum_that_may_be_null_needs_its_default_too() {
        let carrier = serde_json::json!({ "type": "enum", "name": "Carrier", "doc": "Who", "symbols": ["post"] });
        let field =
            serde_json::json!({ "name": "carrier", "doc": "Who", "type": ["null", carrier] });
        assert_type_documented(
            "topic",
            &serde_json::json!({ "type": "record", "doc": "It", "fields": [field] }),
        );
    }

    #[test]
    #[should_panic(expected = "shop.sold is kept for 30 days")]
    fn a_topic_that_outlives_the_inbox_is_found() {
        static LONG: Topic = Topic::new("shop.sold", "shop", SOLD).days(30);
        assert_inbox_outlasts_retention(&[&SOLD_TOPIC, &LONG]);
    }

    const NAMED: &str = r#"{"type": "record", "name": "Named", "doc": "Named.", "fields": [
        {"name": "all", "doc": "Who.", "type": ["null", {"type": "array", "items": {"type": "record", "name": "One",
            "doc": "One.", "fields": [{"name": "name", "type": "string", "doc": "Who.", "personal": true}]}}]}]}"#;

    static NAMED_TOPIC: Topic = Topic::new("shop.named", "shop", NAMED).personal(&["mail"]);

    #[test]
    fn a_personal_topic_has_a_personal_field() {
        assert_personal_fields(&[&SOLD_TOPIC, &NAMED_TOPIC]);
    }

    #[test]
    #[should_panic(expected = "shop.opened: name is personal, and the topic is not")]
    fn a_personal_field_in_an_open_topic_is_found() {
        static OPENED: Topic = Topic::new("shop.opened", "shop", NAMED);
        assert_personal_fields(&[&OPENED]);
    }

    #[test]
    #[should_panic(expected = "shop.closed is personal, and none of its fields is")]
    fn a_personal_topic_without_a_personal_field_is_found() {
        static CLOSED: Topic = Topic::new("shop.closed", "shop", SOLD).personal(&[]);
        assert_personal_fields(&[&CLOSED]);
    }

    #[test]
    #[should_panic(expected = "shop.other: name is personal in another place")]
    fn a_field_that_is_personal_in_one_topic_and_not_in_another_is_found() {
        const OTHER: &str = r#"{"type": "record", "name": "Other", "doc": "Other.", "fields": [
            {"name": "name", "type": "string", "doc": "Who."}]}"#;
        static OTHER_TOPIC: Topic = Topic::new("shop.other", "shop", OTHER);
        assert_personal_fields(&[&NAMED_TOPIC, &OTHER_TOPIC]);
    }

    #[test]
    #[should_panic(expected = "from line 4 on")]
    fn a_document_of_another_declaration_is_found() {
        let lending = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/lending/asyncapi.json");
        let shop = Contracts::new("shop", "1", &[&SOLD_TOPIC], Subscriptions::default());
        assert_asyncapi_file(&shop, lending);
    }
}
