//! Avro in Confluent's wire format: a zero, the schema's id in four bytes, the body.
//!
//! Promise: bytes that are not exactly one record of the writer's schema are refused, whatever they
//! are, without a panic and without allocating more than a bounded amount. Apache Avro's reader
//! alone takes the end of input inside a string for null and ignores bytes left over; see
//! [`Whole`].

use std::collections::HashMap;
use std::io::{self, Read};

use apache_avro::schema::{DecimalSchema, InnerDecimalSchema, Name, ResolvedSchema, UuidSchema};
use apache_avro::types::Value;
use apache_avro::{
    Schema, from_value, reader::datum::GenericDatumReader, writer::datum::GenericDatumWriter,
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

/// The largest body, in bytes, that is written or read: far above any event, far below the
/// broker's limit for a record (1 MiB).
pub const BODY_BYTES_MAX: usize = 256 * 1024;

/// No array, map, string or bytes of a record may claim more memory than this.
const ALLOCATION_BYTES_MAX: usize = 1024 * 1024;

const MAGIC: u8 = 0;

/// Bytes that are no record of ours, because. They become a dead letter.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Undecodable(pub String);

/// Identifies a schema by its text, white space apart: SHA-256 of the JSON without it.
/// (Avro's own canonical form drops defaults and logical types, which matter here.)
pub type Fingerprint = [u8; 32];

/// Values that one record may have, its types written out wherever a schema names them. Each takes memory,
/// whether it takes bytes or not.
const VALUES_MAX: usize = 10_000;

/// Values without bytes that one item of an array or a map may have: there may be an item for each byte.
const FREE_VALUES_MAX: usize = 16;

/// Writer and reader of one schema, made once: resolving a schema costs more than using it.
pub struct Codec {
    schema: &'static Schema,
    /// The named types of the schema, for what was written by another one.
    names: ResolvedSchema<'static>,
    writer: GenericDatumWriter<'static>,
    reader: GenericDatumReader<'static>,
    /// Identifies the schema.
    pub fingerprint: Fingerprint,
}

impl Codec {
    /// Parses a schema that stands alone.
    pub fn new(text: &str) -> Result<Codec, Undecodable> {
        Codec::with_references(text, &[])
    }

    /// Parses a schema and those that it refers to, directly or not, each after those that it refers to
    /// itself.
    ///
    /// The parsed schemas are never freed. There is one codec a schema version, and the caller keeps
    /// it; only schemas that the registry holds, or that are compiled in, come here.
    pub fn with_references(text: &str, references: &[String]) -> Result<Codec, Undecodable> {
        // Set once for the process, before the first decode would freeze the library's 512 MiB.
        apache_avro::util::max_allocation_bytes(ALLOCATION_BYTES_MAX);
        let (schema, others) =
            Schema::parse_str_with_list(text, references).map_err(undecodable)?;
        Bounds::new(&others).check(&schema)?;
        let schema: &'static Schema = Box::leak(Box::new(schema));
        let others: &'static [Schema] = Vec::leak(others);
        let all: Vec<&Schema> = others.iter().chain([schema]).collect();
        let names = ResolvedSchema::new_with_schemata(all).map_err(undecodable)?;
        Ok(Codec {
            schema,
            writer: GenericDatumWriter::builder(schema)
                .resolved_schemata(names.clone())
                .human_readable(true)
                .build()
                .map_err(undecodable)?,
            reader: GenericDatumReader::builder(schema)
                .resolved_writer_schemata(names.clone())
                .human_readable(true)
                .build()
                .map_err(undecodable)?,
            names,
            fingerprint: match references.is_empty() {
                true => fingerprint(text)?,
                // The text alone does not say what it refers to.
                false => Sha256::digest(format!("{text}\n{}", references.join("\n"))).into(),
            },
        })
    }

    /// The body of an event, without wire header.
    pub fn encode<T: Serialize>(&self, event: &T) -> Result<Vec<u8>, Undecodable> {
        self.writer.write_ser_to_vec(event).map_err(undecodable)
    }

    /// Reads a body that was written with `written`'s schema into a struct of this codec's schema.
    pub fn decode<T: DeserializeOwned>(
        &self,
        written: &Codec,
        body: &[u8],
    ) -> Result<T, Undecodable> {
        let mut input = Whole(body);
        let event = if written.fingerprint == self.fingerprint {
            self.reader.read_deser(&mut input).map_err(undecodable)?
        } else {
            // Another version: Avro's resolution fills in defaults, at five times the cost.
            let value = written.reader.read_value(&mut input).map_err(undecodable)?;
            let names = self.names.get_names();
            let value = with_times_of(self.schema, names, value)?;
            let value = value.resolve_with_names(self.schema, names).map_err(undecodable)?;
            from_value(&value).map_err(undecodable)?
        };
        input.is_at_its_end()?;
        Ok(event)
    }

    /// What a body says that was written with this schema, for people to read.
    pub fn json(&self, body: &[u8]) -> Result<serde_json::Value, Undecodable> {
        let mut input = Whole(body);
        let value = self.reader.read_value(&mut input).map_err(undecodable)?;
        input.is_at_its_end()?;
        readable(value)
    }
}

/// What a value says, for people: times as text rather than as numbers.
fn readable(value: Value) -> Result<serde_json::Value, Undecodable> {
    Ok(match value {
        Value::Record(fields) => {
            let read = fields.into_iter().map(|(name, value)| Ok((name, readable(value)?)));
            serde_json::Value::Object(read.collect::<Result<_, Undecodable>>()?)
        }
        Value::Array(items) => items.into_iter().map(readable).collect::<Result<_, _>>()?,
        Value::Union(_, value) => readable(*value)?,
        Value::TimestampMillis(time) => moment(DateTime::from_timestamp_millis(time), time),
        Value::TimestampMicros(time) => moment(DateTime::from_timestamp_micros(time), time),
        Value::TimestampNanos(time) => moment(Some(DateTime::from_timestamp_nanos(time)), time),
        other => other.try_into().map_err(|error: apache_avro::Error| undecodable(error))?,
    })
}

fn moment(time: Option<DateTime<Utc>>, number: i64) -> serde_json::Value {
    match time {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::AutoSi, true).into(),
        None => number.into(),
    }
}

/// A value whose times are in the unit of the reader's schema.
///
/// Avro's resolution takes a number without a unit for one in the reader's unit, which may be wrong by a
/// thousand times or more: such a time is refused. It refuses other units, which can be converted.
fn with_times_of(
    reader: &Schema,
    names: &HashMap<Name, &'static Schema>,
    value: Value,
) -> Result<Value, Undecodable> {
    let inside = |schema, value| with_times_of(schema, names, value);
    Ok(match (reader, value) {
        (Schema::Ref { name }, value) => match names.get(name) {
            Some(schema) => inside(schema, value)?,
            None => value,
        },
        (Schema::Union(_), Value::Union(_, value)) => inside(reader, *value)?,
        (Schema::Union(union), value) => {
            let alike = |schema: &&Schema| match &value {
                Value::Record(_) => matches!(schema, Schema::Record(_) | Schema::Ref { .. }),
                Value::Array(_) => matches!(schema, Schema::Array(_)),
                Value::Map(_) => matches!(schema, Schema::Map(_)),
                Value::Null => false,
                _ => unit_of(schema).is_some(),
            };
            match union.variants().iter().find(alike) {
                Some(schema) => inside(schema, value)?,
                None => value,
            }
        }
        (reader, Value::Union(_, value)) => inside(reader, *value)?,
        (Schema::Record(record), Value::Record(fields)) => {
            let fields = fields.into_iter().map(|(name, value)| {
                let read_as = record.fields.iter().find(|field| field.name == name);
                let value = match read_as {
                    Some(field) => inside(&field.schema, value)?,
                    None => value,
                };
                Ok((name, value))
            });
            Value::Record(fields.collect::<Result<_, Undecodable>>()?)
        }
        (Schema::Array(array), Value::Array(items)) => {
            let items = items.into_iter().map(|item| inside(&array.items, item));
            Value::Array(items.collect::<Result<_, _>>()?)
        }
        (Schema::Map(map), Value::Map(entries)) => {
            let entries =
                entries.into_iter().map(|(key, value)| Ok((key, inside(&map.types, value)?)));
            Value::Map(entries.collect::<Result<_, Undecodable>>()?)
        }
        (reader, value) => match unit_of(reader) {
            Some(unit) => converted(value, unit)?,
            None => value,
        },
    })
}

/// How many units of a time are a second; of a time of day and a local time none is converted.
fn unit_of(schema: &Schema) -> Option<i64> {
    match schema {
        Schema::TimestampMillis => Some(1_000),
        Schema::TimestampMicros => Some(1_000_000),
        Schema::TimestampNanos => Some(1_000_000_000),
        _ => None,
    }
}

/// A time in another unit. What is finer than that is cut off.
fn converted(value: Value, unit: i64) -> Result<Value, Undecodable> {
    let (time, of) = match value {
        Value::TimestampMillis(time) => (time, 1_000),
        Value::TimestampMicros(time) => (time, 1_000_000),
        Value::TimestampNanos(time) => (time, 1_000_000_000),
        Value::Long(_) | Value::Int(_) => {
            return Err(Undecodable("a time was written as a number without a unit".to_string()));
        }
        other => return Ok(other),
    };
    let time = match unit >= of {
        true => time.checked_mul(unit / of),
        false => Some(time.div_euclid(of / unit)),
    };
    let time = time.ok_or_else(|| Undecodable("a time is too far away".to_string()))?;
    Ok(match unit {
        1_000 => Value::TimestampMillis(time),
        1_000_000 => Value::TimestampMicros(time),
        _ => Value::TimestampNanos(time),
    })
}

/// Puts the wire header in front of a body.
pub fn frame(schema_id: u32, body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(5 + body.len());
    record.push(MAGIC);
    record.extend_from_slice(&schema_id.to_be_bytes());
    record.extend_from_slice(body);
    record
}

/// Takes the wire header off: the schema's id and the body.
pub fn unframe(record: &[u8]) -> Result<(u32, &[u8]), Undecodable> {
    let [magic, a, b, c, d, body @ ..] = record else {
        return Err(Undecodable(format!("{} bytes are too few for a record", record.len())));
    };
    if *magic != MAGIC {
        return Err(Undecodable(format!("the first byte is {magic}, not the magic 0")));
    }
    if body.len() > BODY_BYTES_MAX {
        return Err(Undecodable(format!(
            "a body of {} bytes exceeds {BODY_BYTES_MAX}",
            body.len()
        )));
    }
    Ok((u32::from_be_bytes([*a, *b, *c, *d]), body))
}

/// See [`Fingerprint`].
pub fn fingerprint(schema: &str) -> Result<Fingerprint, Undecodable> {
    let json: serde_json::Value = serde_json::from_str(schema).map_err(undecodable)?;
    Ok(Sha256::digest(json.to_string()).into())
}

/// A reader to whose end nobody can read: a short read is an error of its own kind.
///
/// apache-avro 0.22 turns `UnexpectedEof` inside a string or a union into null, so that a record
/// cut short would read as a shorter record.
struct Whole<'a>(&'a [u8]);

impl Whole<'_> {
    fn is_at_its_end(&self) -> Result<(), Undecodable> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(Undecodable(format!("{left} bytes left over after the record"))),
        }
    }
}

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.len() > self.0.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the record ends early"));
        }
        self.0.read(buffer)
    }
}

/// Refuses schemas by which a few bytes of input come to any amount of memory or stack. A record names its
/// schema, and may name any that the registry holds.
struct Bounds<'a> {
    /// Schemas that are referred to, by name.
    others: HashMap<&'a Name, &'a Schema>,
    /// Named types: what they come to, or nothing while they are being checked.
    named: HashMap<Name, Option<Size>>,
}

/// What a schema comes to, its types written out wherever they are named.
#[derive(Clone, Copy)]
struct Size {
    values: usize,
    /// Those of them that take no bytes.
    free: usize,
    takes_bytes: bool,
}

impl<'a> Bounds<'a> {
    fn new(others: &'a [Schema]) -> Bounds<'a> {
        let named = others.iter().filter_map(|schema| Some((schema.name()?, schema)));
        Bounds { others: named.collect(), named: HashMap::new() }
    }

    fn check(&mut self, schema: &Schema) -> Result<Size, Undecodable> {
        let size = match schema {
            Schema::Ref { name } => match (self.named.get(name), self.others.get(name)) {
                (Some(Some(size)), _) => *size,
                (Some(None), _) => return Err(Undecodable(format!("{name} recurses"))),
                (None, Some(other)) => self.check(other)?,
                (None, None) => {
                    return Err(Undecodable(format!(
                        "the schema refers to {name}, which is not known"
                    )));
                }
            },
            Schema::Record(record) => {
                self.named.insert(record.name.clone(), None);
                let (mut values, mut free, mut takes_bytes) = (1_usize, 0_usize, false);
                for field in &record.fields {
                    let field = self.check(&field.schema)?;
                    values = values.saturating_add(field.values);
                    free = free.saturating_add(field.free);
                    takes_bytes |= field.takes_bytes;
                }
                Size { values, free: free + usize::from(!takes_bytes), takes_bytes }
            }
            Schema::Array(array) => self.many(&array.items, true)?,
            Schema::Map(map) => self.many(&map.types, false)?,
            Schema::Union(union) => {
                let (mut values, mut free) = (0, 0);
                for variant in union.variants() {
                    let variant = self.check(variant)?;
                    values = variant.values.max(values);
                    free = variant.free.max(free);
                }
                Size { values: values.saturating_add(1), free, takes_bytes: true }
            }
            schema => match fixed_bytes(schema) {
                // Memory for it is taken before its bytes are read.
                Some(bytes) if bytes > ALLOCATION_BYTES_MAX => {
                    return Err(Undecodable(format!("the schema has a fixed of {bytes} bytes")));
                }
                bytes => {
                    let is_free = bytes == Some(0) || *schema == Schema::Null;
                    Size { values: 1, free: usize::from(is_free), takes_bytes: !is_free }
                }
            },
        };
        if size.values > VALUES_MAX {
            return Err(Undecodable(format!("the schema comes to more than {VALUES_MAX} values")));
        }
        if let Some(name) = schema.name() {
            self.named.insert(name.clone(), Some(size));
        }
        Ok(size)
    }

    /// Of items without bytes, there may be any number in each of any number of arrays. An entry of a map has a
    /// key, which takes a byte.
    fn many(&mut self, items: &Schema, is_array: bool) -> Result<Size, Undecodable> {
        let item = self.check(items)?;
        if is_array && !item.takes_bytes {
            return Err(Undecodable(
                "the schema has an array of items that take no bytes".to_string(),
            ));
        }
        if item.free > FREE_VALUES_MAX {
            let because = "the schema has many items with many values that take no bytes";
            return Err(Undecodable(because.to_string()));
        }
        Ok(Size { values: item.values.saturating_add(1), free: 0, takes_bytes: true })
    }
}

fn fixed_bytes(schema: &Schema) -> Option<usize> {
    match schema {
        Schema::Fixed(fixed)
        | Schema::Duration(fixed)
        | Schema::Uuid(UuidSchema::Fixed(fixed))
        | Schema::Decimal(DecimalSchema { inner: InnerDecimalSchema::Fixed(fixed), .. }) => {
            Some(fixed.size)
        }
        _ => None,
    }
}

fn undecodable(error: impl std::fmt::Display) -> Undecodable {
    Undecodable(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(fields: &str) -> Option<String> {
        let schema = format!(
            r#"{{"type": "record", "name": "R", "fields": [{{"name": "f", "type": {fields}}}]}}"#
        );
        Codec::new(&schema).err().map(|Undecodable(why)| why)
    }

    #[test]
    fn schemas_by_which_a_few_bytes_come_to_any_amount_of_memory_are_refused() {
        let huge = r#"{"type": "fixed", "name": "F", "size": 1000000000000}"#;
        for (of, why) in [
            (huge.to_string(), "fixed"),
            (format!(r#"["null", {huge}]"#), "fixed"),
            (format!(r#"{{"type": "map", "values": {huge}}}"#), "fixed"),
            (
                r#"{"type": "array", "items": {"type": "array", "items": "null"}}"#.into(),
                "no bytes",
            ),
            (
                r#"{"type": "array", "items": {"type": "record", "name": "E", "fields": []}}"#
                    .into(),
                "no bytes",
            ),
            (
                r#"{"type": "array", "items": {"type": "fixed", "name": "Z", "size": 0}}"#.into(),
                "no bytes",
            ),
            (r#"["null", "R"]"#.into(), "recurse"),
            (
                format!(
                    r#"{{"type": "array", "items": {{"type": "record", "name": "M", "fields": [
                        {{"name": "n", "type": "int"}}{}]}}}}"#,
                    (0..20).fold(String::new(), |fields, nth| fields
                        + &format!(r#", {{"name": "f{nth}", "type": "null"}}"#))
                ),
                "many values",
            ),
            // Twenty types, each of which names the one before it twice.
            (
                (1..20).fold(r#""null""#.to_string(), |of, nth| {
                    format!(
                        r#"{{"type": "record", "name": "D{nth}", "fields": [
                            {{"name": "a", "type": {of}}}, {{"name": "b", "type": {}}}]}}"#,
                        if nth == 1 {
                            r#""null""#.to_string()
                        } else {
                            format!(r#""D{}""#, nth - 1)
                        }
                    )
                }),
                "values",
            ),
        ] {
            let refused = refused(&of);
            assert!(refused.as_ref().is_some_and(|said| said.contains(why)), "{of}: {refused:?}");
        }
        for of in [
            r#"{"type": "map", "values": {"type": "record", "name": "P", "fields": [
                {"name": "a", "type": {"type": "enum", "name": "E", "symbols": ["x"]}},
                {"name": "b", "type": ["null", "E"]}]}}"#,
            r#"{"type": "fixed", "name": "F", "size": 16}"#,
            r#"{"type": "array", "items": ["null", "int"]}"#,
            r#"{"type": "array", "items": {"type": "array", "items": "int"}}"#,
            r#"{"type": "map", "values": "null"}"#,
            r#""null""#,
        ] {
            assert_eq!(refused(of), None, "{of}");
        }
    }

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    enum Rail {
        #[serde(rename = "card")]
        Card,
        #[serde(rename = "unknown")]
        Unknown,
    }

    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Paid {
        rail: Option<Rail>,
        fallback_rail: Option<Rail>,
    }

    #[test]
    fn a_type_that_a_schema_names_twice_is_written_and_read() {
        let rail = r#"{"type": "enum", "name": "Rail", "symbols": ["card", "unknown"], "default": "unknown"}"#;
        let paid = |more: &str| {
            Codec::new(&format!(
                r#"{{"type": "record", "name": "Paid", "namespace": "tills", "fields": [
                    {{"name": "rail", "type": ["null", {rail}], "default": null}},
                    {{"name": "fallback_rail", "type": ["null", "tills.Rail"], "default": null}}{more}]}}"#
            ))
            .unwrap()
        };
        let (codec, newer) =
            (paid(""), paid(r#", {"name": "more", "type": "string", "default": ""}"#));
        let event = Paid { rail: Some(Rail::Card), fallback_rail: Some(Rail::Unknown) };
        let body = codec.encode(&event).unwrap();
        assert_eq!(codec.decode::<Paid>(&codec, &body).unwrap(), event);
        let newer_body = [&body, b"\0".as_slice()].concat();
        assert_eq!(codec.decode::<Paid>(&newer, &newer_body).unwrap(), event);
    }

    /// Seconds since 1970, however they were written.
    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct At {
        at: Option<i64>,
    }

    #[test]
    fn a_time_in_another_unit_is_converted_and_one_without_a_unit_is_refused() {
        let with = |unit: &str| {
            let at = format!(r#"{{"type": "long"{unit}}}"#);
            Codec::new(&format!(
                r#"{{"type": "record", "name": "At", "fields": [{{"name": "at", "type": ["null", {at}]}}]}}"#
            ))
            .unwrap()
        };
        let named = |unit: &str| with(&format!(r#", "logicalType": "{unit}""#));
        let reader = named("timestamp-micros");
        let read = |written: &Codec, at: i64| {
            let body = written.encode(&At { at: Some(at) }).unwrap();
            reader.decode::<At>(written, &body).map(|At { at }| at.unwrap())
        };
        assert_eq!(read(&reader, 1_700_000_000_123_456), Ok(1_700_000_000_123_456));
        assert_eq!(read(&named("timestamp-millis"), 1_700_000_000_123), Ok(1_700_000_000_123_000));
        assert_eq!(
            read(&named("timestamp-nanos"), 1_700_000_000_123_456_789),
            Ok(1_700_000_000_123_456)
        );
        assert_eq!(read(&named("timestamp-nanos"), -1), Ok(-1), "before 1970");
        assert!(read(&named("timestamp-millis"), i64::MAX).unwrap_err().0.contains("far away"));
        assert!(read(&with(""), 1_700_000_000_123).unwrap_err().0.contains("without a unit"));
        assert!(read(&named("local-timestamp-micros"), 1).is_err(), "of no zone");
    }
}
