//! Compatibility of two versions of a schema in one topic: each must read every record of the
//! other, for good. A registry checks the same under `FULL_TRANSITIVE`; here it is checked without
//! one, with messages.
//!
//! Avro also allows changes that only one side can read, such as int to long. A topic has readers
//! of both versions, so they are refused here.

use std::collections::BTreeSet;

use apache_avro::Schema;
use apache_avro::schema::{EnumSchema, RecordSchema};

/// The reasons why one version could not read the other, as sentences. `older_name` is the name of
/// the older version in them.
pub fn conflicts(older_name: &str, older: &Schema, newer: &Schema) -> Vec<String> {
    let mut comparison = Comparison { older_name, conflicts: Vec::new() };
    comparison.compare("", older, newer);
    comparison.conflicts
}

struct Comparison<'a> {
    older_name: &'a str,
    conflicts: Vec<String>,
}

impl Comparison<'_> {
    fn add(&mut self, conflict: String) {
        self.conflicts.push(conflict);
    }

    fn compare(&mut self, place: &str, older: &Schema, newer: &Schema) {
        let older_name = self.older_name;
        match (older, newer) {
            (Schema::Record(older), Schema::Record(newer)) if older.name == newer.name => {
                self.compare_fields(place, older, newer)
            }
            (Schema::Enum(older), Schema::Enum(newer)) if older.name == newer.name => {
                self.compare_symbols(place, older, newer)
            }
            (Schema::Array(older), Schema::Array(newer)) => {
                self.compare(&format!("{place}[]"), &older.items, &newer.items)
            }
            (Schema::Map(older), Schema::Map(newer)) => {
                self.compare(&format!("{place}{{}}"), &older.types, &newer.types)
            }
            (Schema::Union(older), Schema::Union(newer)) => {
                let (older, newer) = (older.variants(), newer.variants());
                let kinds = |all: &[Schema]| all.iter().map(type_name).collect::<BTreeSet<_>>();
                if kinds(older) != kinds(newer) {
                    let words = |all| Vec::from_iter(kinds(all)).join(" | ");
                    self.add(format!(
                        "{}may hold {} and could hold {} in {older_name}: the types of a field never change",
                        describe(place),
                        words(newer),
                        words(older)
                    ));
                }
                for newer in newer {
                    for older in older.iter().filter(|older| type_name(older) == type_name(newer)) {
                        self.compare(place, older, newer);
                    }
                }
            }
            _ => {
                let (was, is) = (type_name(older), type_name(newer));
                if was != is {
                    self.add(format!(
                        "{}is {is} and was {was} in {older_name}: a type and its name never change; add a \
                         new field with a default",
                        describe(place)
                    ));
                }
            }
        }
    }

    fn compare_fields(&mut self, place: &str, older: &RecordSchema, newer: &RecordSchema) {
        let older_name = self.older_name;
        let inside = |name: &str| match place {
            "" => name.to_string(),
            place => format!("{place}.{name}"),
        };
        for field in &newer.fields {
            let place = inside(&field.name);
            match older.fields.iter().find(|was| was.name == field.name) {
                Some(was) => self.compare(&place, &was.schema, &field.schema),
                None if field.default.is_none() => self.add(format!(
                    "`{place}` is new and has no default: it is missing in what was written with {older_name}"
                )),
                None => {}
            }
        }
        for was in &older.fields {
            let is_gone = newer.fields.iter().all(|field| field.name != was.name);
            if is_gone && was.default.is_none() {
                self.add(format!(
                    "`{}` was removed and had no default: readers with {older_name} would miss it",
                    inside(&was.name)
                ));
            }
        }
    }

    fn compare_symbols(&mut self, place: &str, older: &EnumSchema, newer: &EnumSchema) {
        let older_name = self.older_name;
        for symbol in newer.symbols.iter().filter(|symbol| !older.symbols.contains(symbol)) {
            if older.default.is_none() {
                self.add(format!(
                    "{}has the new symbol {symbol}, and {older_name} has no default to read it as",
                    describe(place)
                ));
            }
        }
        for symbol in older.symbols.iter().filter(|symbol| !newer.symbols.contains(symbol)) {
            if newer.default.is_none() {
                self.add(format!(
                    "{}lost the symbol {symbol} of {older_name}, and has no default to read it as",
                    describe(place)
                ));
            }
        }
    }
}

fn describe(place: &str) -> String {
    match place {
        "" => "the record ".to_string(),
        place => format!("`{place}` "),
    }
}

/// A type, as far as it can never change, in words.
fn type_name(schema: &Schema) -> String {
    match schema {
        Schema::Record(record) => format!("record {}", record.name),
        Schema::Enum(symbols) => format!("enum {}", symbols.name),
        Schema::Array(_) => "an array".to_string(),
        Schema::Map(_) => "a map".to_string(),
        Schema::Union(_) => "a union".to_string(),
        other => serde_json::to_string(other).unwrap_or_default().replace('"', ""),
    }
}

#[cfg(test)]
mod tests {
    use apache_avro::schema_compatibility::{Compatibility, SchemaCompatibility};
    use serde_json::{Value, json};

    use super::*;

    /// A schema with every kind of field that a contract may have.
    fn sample_schema() -> Value {
        json!({"type": "record", "name": "Sold", "namespace": "shop", "fields": [
            {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
            {"name": "why", "type": {"type": "enum", "name": "Why", "symbols": ["need", "joy", "unknown"],
                                     "default": "unknown"}},
            {"name": "mood", "type": {"type": "enum", "name": "Mood", "symbols": ["good", "bad"]}},
            {"name": "lines", "type": {"type": "array", "items": {"type": "record", "name": "Line", "fields": [
                {"name": "count", "type": "int"},
                {"name": "remark", "type": ["null", "string"], "default": null}]}}},
            {"name": "paid", "type": "long"},
            {"name": "note", "type": ["null", "string"], "default": null},
            {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}}]})
    }

    /// The conflicts between the schema and one change of it, in both directions.
    fn conflicts_of(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let mut changed = sample_schema();
        change(&mut changed);
        let [old, new] = [sample_schema(), changed].map(|schema| Schema::parse(&schema).unwrap());
        let conflicts = conflicts("version 1", &old, &new);
        // Every change that is allowed here is also allowed by Avro.
        if conflicts.is_empty() {
            assert_eq!(SchemaCompatibility::mutual_read(&old, &new), Ok(Compatibility::Full));
        }
        conflicts
    }

    fn fields(schema: &mut Value) -> &mut Vec<Value> {
        schema["fields"].as_array_mut().unwrap()
    }

    #[test]
    fn a_change_that_every_reader_can_read_is_allowed() {
        for (what, conflicts) in [
            ("nothing changed", conflicts_of(|_| ())),
            ("a doc", conflicts_of(|it| it["doc"] = json!("Sold."))),
            (
                "a field with a default",
                conflicts_of(|it| {
                    fields(it).push(json!({"name": "tip", "type": "long", "default": 0}));
                }),
            ),
            (
                "a symbol of an enum with a default",
                conflicts_of(|it| {
                    it["fields"][1]["type"]["symbols"] = json!(["need", "joy", "habit", "unknown"]);
                }),
            ),
            (
                "a field with a default gone",
                conflicts_of(|it| {
                    fields(it).retain(|field| field["name"] != "note");
                }),
            ),
            ("other order", conflicts_of(|it| fields(it).reverse())),
            (
                "a field with a default, inside",
                conflicts_of(|it| {
                    it["fields"][3]["type"]["items"]["fields"]
                        .as_array_mut()
                        .unwrap()
                        .push(json!({"name": "gift", "type": "boolean", "default": false}));
                }),
            ),
        ] {
            assert_eq!(conflicts, Vec::<String>::new(), "{what}");
        }
    }

    #[test]
    #[allow(clippy::too_many_lines)]
    fn each_change_that_some_reader_could_not_read_is_refused_and_named() {
        let cases: [(Vec<String>, &[&str]); 14] = [
            (
                conflicts_of(|it| fields(it).push(json!({"name": "tip", "type": "long"}))),
                &[
                    "`tip` is new and has no default: it is missing in what was written with version 1",
                ],
            ),
            (
                conflicts_of(|it| fields(it).retain(|field| field["name"] != "paid")),
                &["`paid` was removed and had no default: readers with version 1 would miss it"],
            ),
            (
                conflicts_of(|it| it["fields"][4]["name"] = json!("paid_cents")),
                &[
                    "`paid_cents` is new and has no default",
                    "`paid` was removed and had no default",
                ],
            ),
            (
                conflicts_of(|it| it["fields"][4]["type"] = json!("string")),
                &["`paid` is string and was long in version 1"],
            ),
            (
                conflicts_of(|it| it["fields"][4]["type"] = json!("int")),
                &["`paid` is int and was long in version 1"],
            ),
            (
                conflicts_of(|it| it["fields"][4]["type"] = json!(["null", "long"])),
                &["`paid` is a union and was long"],
            ),
            (
                conflicts_of(|it| {
                    it["fields"][3]["type"]["items"]["fields"][0]["type"] = json!("long")
                }),
                &["`lines[].count` is long and was int in version 1"],
            ),
            (
                conflicts_of(|it| it["fields"][6]["type"] = json!("long")),
                &["`at` is long and was {type:long,logicalType:timestamp-micros}"],
            ),
            (
                conflicts_of(|it| {
                    it["fields"][6]["type"]["logicalType"] = json!("timestamp-millis")
                }),
                &["timestamp-micros} in version 1"],
            ),
            (
                conflicts_of(|it| it["fields"][5]["type"] = json!(["null", "string", "long"])),
                &["`note` may hold long | null | string and could hold null | string in version 1"],
            ),
            (
                conflicts_of(|it| {
                    it["fields"][2]["type"]["symbols"] = json!(["good", "bad", "fair"])
                }),
                &["`mood` has the new symbol fair, and version 1 has no default to read it as"],
            ),
            (
                conflicts_of(|it| it["fields"][2]["type"]["symbols"] = json!(["good"])),
                &["`mood` lost the symbol bad of version 1, and has no default to read it as"],
            ),
            (
                conflicts_of(|it| it["fields"][1]["type"]["name"] = json!("Reason")),
                &["`why` is enum shop.Reason and was enum shop.Why in version 1"],
            ),
            (
                conflicts_of(|it| it["name"] = json!("Bought")),
                &["the record is record shop.Bought and was record shop.Sold"],
            ),
        ];
        for (conflicts, sentences) in cases {
            assert_eq!(conflicts.len(), sentences.len(), "{conflicts:?}, not {sentences:?}");
            for (conflict, sentence) in conflicts.iter().zip(sentences) {
                assert!(conflict.contains(sentence), "{conflict}, not {sentence}");
            }
        }
    }

    /// An enum without a default whose symbols half overlap is *partially* compatible for
    /// apache-avro, so a check for errors only would allow it.
    #[test]
    fn a_half_overlapping_enum_is_an_error_here_where_avro_calls_it_partial() {
        let mut changed = sample_schema();
        changed["fields"][2]["type"]["symbols"] = json!(["good", "fair"]);
        let [old, new] = [sample_schema(), changed].map(|schema| Schema::parse(&schema).unwrap());
        assert_eq!(SchemaCompatibility::mutual_read(&old, &new), Ok(Compatibility::Partial));
        assert_eq!(conflicts("version 1", &old, &new).len(), 2);
    }
}
