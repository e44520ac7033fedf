//! Valid events, made from the schemas of their topics.

use anyhow::{Result, bail};
use apache_avro::Schema;
use apache_avro::types::Value as AvroValue;
use apache_avro::writer::datum::GenericDatumWriter;
use chassis::event::Topic;
use serde_json::{Map, Value, json};

/// The lengths of the arrays of the samples of one topic, one after the other.
const LENGTHS: [usize; 3] = [1, 2, 0];

/// 2026-11-20, in microseconds.
const TIME: i64 = 1_795_132_800_123_456;

/// One valid event of a topic, as JSON: numbers are 1, and a text is `sample`.
///
/// # Errors
/// If the schema is no JSON or has a type that JSON lacks: bytes, a fixed or a decimal.
pub fn event(topic: &Topic) -> Result<Value> {
    Ok(sample(&serde_json::from_str(topic.schema)?, 0)?.0)
}

/// Valid events of a topic: each symbol of each enum, each type of each union, and arrays with one, two and no item are
/// in one of them.
///
/// # Errors
/// As [`event`].
pub fn events(topic: &Topic) -> Result<Vec<Value>> {
    let schema = serde_json::from_str(topic.schema)?;
    let (first, choices) = sample(&schema, 0)?;
    let others = (1..choices).map(|choice| Ok(sample(&schema, choice)?.0));
    std::iter::once(Ok(first)).chain(others).collect()
}

/// The body of an event that is given as JSON. A member that the schema does not have is left out.
///
/// # Errors
/// If the event does not fit the schema.
pub fn encode(schema: &str, event: Value) -> Result<Vec<u8>> {
    let schema = Schema::parse_str(schema)?;
    let event = AvroValue::try_from(event)?.resolve(&schema)?;
    Ok(GenericDatumWriter::builder(&schema).build()?.write_value_to_vec(event)?)
}

/// The sample of this number, and how many samples show everything.
fn sample(schema: &Value, choice: usize) -> Result<(Value, usize)> {
    let mut walk = Walk { choice, choices: 1, named: Map::new() };
    Ok((walk.value(schema)?, walk.choices))
}

/// One walk through a schema.
struct Walk {
    choice: usize,
    choices: usize,
    /// The named types that it has passed.
    named: Map<String, Value>,
}

impl Walk {
    fn choose<'a, T>(&mut self, options: &'a [T]) -> Option<&'a T> {
        self.choices = self.choices.max(options.len());
        options.get(self.choice % options.len().max(1))
    }

    fn value(&mut self, schema: &Value) -> Result<Value> {
        if let Some(types) = schema.as_array() {
            // The first type of an optional value is null: its sample comes last.
            let types: Vec<&Value> = types.iter().rev().collect();
            return self.choose(&types).map_or(Ok(Value::Null), |schema| self.value(schema));
        }
        if let Some(name) = schema["name"].as_str() {
            self.named.insert(name.to_owned(), schema.clone());
        }
        let kind = schema.as_str().or(schema["type"].as_str()).unwrap_or_default();
        Ok(match (kind, schema["logicalType"].as_str()) {
            ("string", Some("uuid")) => json!(uuid::Uuid::now_v7()),
            ("string", _) => json!("sample"),
            ("long", Some("timestamp-micros")) => json!(TIME),
            ("int" | "long", _) => json!(1),
            ("float" | "double", _) => json!(1.5),
            ("boolean", _) => json!(true),
            ("null", _) => Value::Null,
            ("enum", _) => self
                .choose(schema["symbols"].as_array().map_or(&[][..], Vec::as_slice))
                .cloned()
                .unwrap_or_default(),
            ("array", _) => {
                let length = self.choose(&LENGTHS).copied().unwrap_or_default();
                (0..length).map(|_| self.value(&schema["items"])).collect::<Result<_>>()?
            }
            ("map", _) => json!({ "sample": self.value(&schema["values"])? }),
            ("record", _) => self.record(schema)?,
            // A reference may have the namespace.
            (name, _) => {
                match name.rsplit('.').next().and_then(|name| self.named.get(name)).cloned() {
                    Some(named) => self.value(&named)?,
                    None if schema["type"].is_object() => self.value(&schema["type"])?,
                    None => bail!("a sample cannot have the type {schema}"),
                }
            }
        })
    }

    fn record(&mut self, schema: &Value) -> Result<Value> {
        let mut event = Map::new();
        for field in schema["fields"].as_array().into_iter().flatten() {
            let name = field["name"].as_str().unwrap_or_default().to_owned();
            event.insert(name, self.value(&field["type"])?);
        }
        Ok(Value::Object(event))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOLD: &str = r#"{"type": "record", "name": "Sold", "fields": [
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "tip", "type": ["null", "long"], "default": null},
        {"name": "why", "type": {"type": "enum", "name": "Why", "symbols": ["need", "joy", "habit", "unknown"]}},
        {"name": "lines", "type": {"type": "array", "items": {"type": "record", "name": "Line", "fields": [
            {"name": "count", "type": "int"}, {"name": "again", "type": "Why"}]}}},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-micros"}}]}"#;

    static SOLD_TOPIC: Topic = Topic::new("shop.sold", "shop", SOLD);

    #[test]
    fn the_samples_of_a_topic_show_every_symbol_and_every_type_and_fit_the_schema() {
        let samples = events(&SOLD_TOPIC).unwrap();
        let why: Vec<&Value> = samples.iter().map(|sample| &sample["why"]).collect();
        assert_eq!(why, ["need", "joy", "habit", "unknown"]);
        let tips: Vec<&Value> = samples.iter().map(|sample| &sample["tip"]).collect();
        assert_eq!(tips, [&json!(1), &Value::Null, &json!(1), &Value::Null]);
        assert_eq!(
            samples[1]["lines"],
            json!([{ "count": 1, "again": "joy" }, { "count": 1, "again": "joy" }])
        );
        for sample in samples {
            let body = encode(SOLD, sample.clone()).unwrap();
            SOLD_TOPIC.codec().decode_json(&body).unwrap();
        }
        assert_eq!(event(&SOLD_TOPIC).unwrap()["tip"], 1);
    }
}
