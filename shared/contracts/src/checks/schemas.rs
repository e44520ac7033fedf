//! Checks of schemas: their files, their documentation, their personal fields, and their versions.

use std::collections::BTreeSet;
use std::path::Path;

use chassis::event::Topic;
use serde_json::Value;

use crate::versions;

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

pub(super) fn parse_schema(topic: &Topic) -> Value {
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
    let fields_of = |topic| {
        let mut fields: Vec<(String, bool)> = Vec::new();
        collect_fields(&parse_schema(topic), &mut fields);
        (topic, fields)
    };
    let fields: Vec<_> = topics.iter().map(|topic| fields_of(*topic)).collect();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::tests::{NAMED, NAMED_TOPIC, SOLD, SOLD_TOPIC};

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
}
