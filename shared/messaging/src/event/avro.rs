//! Avro in Confluent's wire format: a zero, the schema's id in four bytes, the body.
//!
//! Promise: bytes that are not exactly one record of the writer's schema are refused, without a panic and within
//! bounded memory. Apache Avro's reader alone does not keep this promise: it reads the end of the input inside a
//! string as null, and ignores bytes that are left over. `FullBody` detects both.

use std::io::{self, Read};

use apache_avro::schema::ResolvedSchema;
use apache_avro::types::Value;
use apache_avro::{
    Schema, from_value, reader::datum::GenericDatumReader, writer::datum::GenericDatumWriter,
};
use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use crate::event::avro_timestamps::convert_timestamps;
use crate::event::schema_bounds::{ALLOCATION_BYTES_MAX, SchemaBounds};
pub use crate::event::undecodable::Undecodable;
use crate::event::undecodable::undecodable;

/// The largest body, in bytes, that is written or read: far above any event, far below the
/// broker's limit for a record (1 MiB).
pub const BODY_BYTES_MAX: usize = 256 * 1024;

const MAGIC: u8 = 0;

/// Identifies a schema: the SHA-256 of its JSON without white space. (Avro's own canonical form drops defaults and
/// logical types, which matter here.)
pub type Fingerprint = [u8; 32];

/// Writer and reader of one schema, made once: resolving a schema costs more than using it.
pub struct Codec {
    schema: &'static Schema,
    /// The named types of the schema, to resolve bodies that were written with another schema.
    names: ResolvedSchema<'static>,
    writer: GenericDatumWriter<'static>,
    reader: GenericDatumReader<'static>,
    /// Identifies the schema.
    pub fingerprint: Fingerprint,
    /// Identifies what its bodies look like; the header `ce_dataschema` of their records.
    pub dataschema: String,
    /// The text of the schema and of those that it refers to, as they were parsed.
    pub(crate) source: (String, Vec<String>),
}

/// What `ce_dataschema` begins with, before the SHA-256 of the schema's parsing canonical form in hex.
const DATASCHEMA_PREFIX: &str = "urn:avro:sha-256:";

/// The header `ce_dataschema` of records with this schema: Avro's own fingerprint of it. A registry may return a schema
/// in other words than it got, and the fingerprint is the same then.
pub fn dataschema(text: &str) -> Result<String, Undecodable> {
    Ok(dataschema_of(&Schema::parse_str(text).map_err(undecodable)?.canonical_form()))
}

fn dataschema_of(canonical_form: &str) -> String {
    let hash = Sha256::digest(canonical_form);
    hash.iter().fold(DATASCHEMA_PREFIX.to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// Whether a value of `ce_dataschema` is of the form that this chassis writes. Other producers may put any URI there.
pub(crate) fn is_fingerprint(dataschema: &str) -> bool {
    let hash = dataschema.strip_prefix(DATASCHEMA_PREFIX).unwrap_or_default();
    hash.len() == 2 * size_of::<Fingerprint>() && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
}

impl Codec {
    /// Parses a schema that stands alone.
    pub fn new(text: &str) -> Result<Codec, Undecodable> {
        Codec::with_references(text, &[])
    }

    /// Parses a schema. `references` are the schemas that it refers to, directly or indirectly, each behind those
    /// that it refers to itself.
    ///
    /// The parsed schemas are never freed. There is one codec a schema version, and the caller keeps it; only
    /// schemas of the registry and schemas that are compiled in are parsed.
    pub fn with_references(text: &str, references: &[String]) -> Result<Codec, Undecodable> {
        // A limit of the whole process. The first decode fixes it, and its default is 512 MiB.
        apache_avro::util::max_allocation_bytes(ALLOCATION_BYTES_MAX);
        let (schema, others) =
            Schema::parse_str_with_list(text, references).map_err(undecodable)?;
        SchemaBounds::new(&others).check(&schema)?;
        let canonical_form = schema.independent_canonical_form(&others).map_err(undecodable)?;
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
            dataschema: dataschema_of(&canonical_form),
            source: (text.to_owned(), references.to_vec()),
            fingerprint: match references.is_empty() {
                true => fingerprint(text)?,
                // The text alone does not contain the schemas that it refers to.
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
        let mut input = FullBody(body);
        let event = if written.fingerprint == self.fingerprint {
            self.reader.read_deser(&mut input).map_err(undecodable)?
        } else {
            // Another version: Avro's resolution fills in defaults, and costs more.
            let value = written.reader.read_value(&mut input).map_err(undecodable)?;
            let names = self.names.get_names();
            let value = convert_timestamps(self.schema, names, value)?;
            let value = value.resolve_with_names(self.schema, names).map_err(undecodable)?;
            from_value(&value).map_err(undecodable)?
        };
        input.ensure_exhausted()?;
        Ok(event)
    }

    /// The content of a body that was written with this schema, as JSON for people.
    pub fn decode_json(&self, body: &[u8]) -> Result<serde_json::Value, Undecodable> {
        let mut input = FullBody(body);
        let value = self.reader.read_value(&mut input).map_err(undecodable)?;
        input.ensure_exhausted()?;
        to_json(value)
    }
}

/// A value as JSON for people: times are text rather than numbers.
fn to_json(value: Value) -> Result<serde_json::Value, Undecodable> {
    Ok(match value {
        Value::Record(fields) => {
            let read = fields.into_iter().map(|(name, value)| Ok((name, to_json(value)?)));
            serde_json::Value::Object(read.collect::<Result<_, Undecodable>>()?)
        }
        Value::Array(items) => items.into_iter().map(to_json).collect::<Result<_, _>>()?,
        Value::Union(_, value) => to_json(*value)?,
        Value::TimestampMillis(time) => timestamp_json(DateTime::from_timestamp_millis(time), time),
        Value::TimestampMicros(time) => timestamp_json(DateTime::from_timestamp_micros(time), time),
        Value::TimestampNanos(time) => {
            timestamp_json(Some(DateTime::from_timestamp_nanos(time)), time)
        }
        other => other.try_into().map_err(|error: apache_avro::Error| undecodable(error))?,
    })
}

fn timestamp_json(time: Option<DateTime<Utc>>, number: i64) -> serde_json::Value {
    match time {
        Some(time) => time.to_rfc3339_opts(SecondsFormat::AutoSi, true).into(),
        None => number.into(),
    }
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

/// A reader that returns a distinct error if a read goes beyond its end.
///
/// apache-avro 0.22 turns `UnexpectedEof` inside a string or a union into null, so that a record
/// cut short would read as a shorter record.
struct FullBody<'a>(&'a [u8]);

impl FullBody<'_> {
    fn ensure_exhausted(&self) -> Result<(), Undecodable> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(Undecodable(format!("{left} bytes left over after the record"))),
        }
    }
}

impl Read for FullBody<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.len() > self.0.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the record ends early"));
        }
        self.0.read(buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn a_schema_in_other_words_has_the_same_dataschema_and_another_schema_has_another() {
        let of = |field: &str| {
            dataschema(&format!(
                r#"{{"type": "record", "name": "Paid", "namespace": "tills", "fields": [{field}]}}"#
            ))
            .unwrap()
        };
        let at = of(
            r#"{"name": "at", "type": {"type": "record", "name": "Day", "namespace": "tills", "fields": []}}"#,
        );
        let other_words = r#"{"doc": "When.", "type": {"fields": [], "name": "tills.Day", "type": "record"}, "name": "at"}"#;
        assert_eq!(of(other_words), at);
        assert_ne!(of(r#"{"name": "at", "type": "string"}"#), at);
        assert!(is_fingerprint(&at), "{at}");
        for other in [
            "",
            "urn:avro:sha-256:",
            "https://registry/schemas/ids/7",
            &at[1..],
            &at[..at.len() - 1],
        ] {
            assert!(!is_fingerprint(other), "{other}");
        }
    }
}
