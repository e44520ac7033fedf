//! The connectors of the reporting database: each agrees with the schema of its topic and with its table.

use std::collections::BTreeSet;

use events::topics;
use serde_json::{Map, Value};

use super::{read, root};

const FOLDER: &str = "services/reporting/connectors";

/// What every connector has, and why its effect is exact: it writes a row again instead of once more, it reads no
/// record of a transaction that was aborted, and it gives up a record only for the record's own fault.
const SETTINGS: [(&str, &str); 11] = [
    ("connector.class", "reporting.RowSinkConnector"),
    ("value.converter", "reporting.EventConverter"),
    ("insert.mode", "upsert"),
    ("primary.key.mode", "record_value"),
    ("schema.evolution", "none"),
    ("consumer.override.auto.offset.reset", "earliest"),
    ("consumer.override.isolation.level", "read_committed"),
    ("errors.tolerance", "all"),
    ("errors.retry.timeout", "-1"),
    ("errors.deadletterqueue.topic.name", "reporting-dead-letters"),
    ("errors.deadletterqueue.context.headers.enable", "true"),
];

struct Connector {
    name: String,
    settings: Map<String, Value>,
}

impl Connector {
    fn get(&self, setting: &str) -> &str {
        let value = self.settings.get(setting).and_then(Value::as_str);
        value.unwrap_or_else(|| panic!("{} has no {setting}", self.name))
    }

    fn list(&self, setting: &str) -> BTreeSet<String> {
        self.get(setting).split(',').map(str::to_string).collect()
    }
}

fn connectors() -> Vec<Connector> {
    let files = std::fs::read_dir(root().join(FOLDER)).unwrap();
    let mut found: Vec<Connector> = files
        .map(|file| {
            let name = file.unwrap().file_name().into_string().unwrap();
            let settings = serde_json::from_str(&read(&format!("{FOLDER}/{name}"))).unwrap();
            Connector { name: name.trim_end_matches(".json").to_string(), settings }
        })
        .collect();
    found.sort_by(|a, b| a.name.cmp(&b.name));
    found
}

/// The fields of a topic's schema, and those that are marked as personal.
fn fields(topic: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let declared = topics().iter().find(|declared| declared.name == topic).unwrap();
    let schema: Value = serde_json::from_str(declared.schema).unwrap();
    let fields = schema["fields"].as_array().unwrap();
    let name = |field: &Value| field["name"].as_str().unwrap().to_string();
    let personal = fields.iter().filter(|field| field["personal"] == true).map(name).collect();
    (fields.iter().map(name).collect(), personal)
}

/// The columns of a table that a connector writes, and its primary key.
fn columns(table: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let text = read("services/reporting/database.sql");
    let head = format!("create table if not exists {table} (\n");
    let body = text.split_once(&head).unwrap_or_else(|| panic!("there is no {table}")).1;
    let (mut columns, mut key) = (BTreeSet::new(), BTreeSet::new());
    for line in body.lines().take_while(|line| !line.starts_with(");")) {
        let line = line.trim().trim_end_matches(',');
        let name = line.split(' ').next().unwrap().to_string();
        if let Some(names) = line.strip_prefix("primary key (") {
            key = names.trim_end_matches(')').split(", ").map(str::to_string).collect();
        } else if !line.starts_with("--") && !line.contains(" generated always ") {
            if line.ends_with(" primary key") {
                key.insert(name.clone());
            }
            columns.insert(name);
        }
    }
    (columns, key)
}

#[test]
fn every_connector_writes_the_columns_of_its_table_from_fields_of_its_topic() {
    assert_eq!(connectors().len(), 3);
    for connector in connectors() {
        let written = connector.list("transforms.columns.include");
        let (fields, personal) = fields(connector.get("topics"));
        assert!(written.is_subset(&fields), "{}: {written:?}", connector.name);
        assert!(written.is_disjoint(&personal), "{} writes personal data", connector.name);
        let (columns, key) = columns(connector.get("collection.name.format"));
        assert_eq!(columns, written, "{}", connector.name);
        assert_eq!(connector.list("primary.key.fields"), key, "{}", connector.name);
    }
}

#[test]
fn every_connector_has_the_settings_that_make_its_effect_exact() {
    for connector in connectors() {
        for (setting, value) in SETTINGS {
            assert_eq!(connector.get(setting), value, "{}: {setting}", connector.name);
        }
        assert_eq!(connector.get("transforms"), "columns", "{}", connector.name);
        let transform = "org.apache.kafka.connect.transforms.ReplaceField$Value";
        assert_eq!(connector.get("transforms.columns.type"), transform, "{}", connector.name);
    }
}

/// A password stands in no file of the repository.
#[test]
fn every_connector_takes_its_password_from_a_provider() {
    for connector in connectors() {
        assert!(connector.get("connection.password").starts_with("${"), "{}", connector.name);
        assert!(!connector.get("connection.url").contains('@'), "{}", connector.name);
    }
}
