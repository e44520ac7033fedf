//! Avro in Confluent's wire format: a zero, the schema's id in four bytes, the body.
//!
//! Promise: bytes that are not exactly one record of the writer's schema are refused, whatever they
//! are, without a panic and without allocating more than a bounded amount. Apache Avro's reader
//! alone takes the end of input inside a string for null and ignores bytes left over; see
//! [`Whole`].

use std::io::{self, Read};

use apache_avro::schema::{DecimalSchema, InnerDecimalSchema, UuidSchema};
use apache_avro::types::Value;
use apache_avro::{
    Schema, from_value, reader::datum::GenericDatumReader, writer::datum::GenericDatumWriter,
};
use chrono::{DateTime, SecondsFormat};
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

/// Writer and reader of one schema, made once: resolving a schema costs more than using it.
pub struct Codec {
    schema: &'static Schema,
    writer: GenericDatumWriter<'static>,
    reader: GenericDatumReader<'static>,
    /// Identifies the schema.
    pub fingerprint: Fingerprint,
}

impl Codec {
    /// Parses a schema.
    ///
    /// The parsed schema is never freed. There is one codec a schema version, and the caller keeps
    /// it; only schemas that the registry holds, or that are compiled in, come here.
    pub fn new(text: &str) -> Result<Codec, Undecodable> {
        // Set once for the process, before the first decode would freeze the library's 512 MiB.
        apache_avro::util::max_allocation_bytes(ALLOCATION_BYTES_MAX);
        let schema = Schema::parse_str(text).map_err(undecodable)?;
        refuse_what_has_no_bound(&schema)?;
        let schema: &'static Schema = Box::leak(Box::new(schema));
        Ok(Codec {
            schema,
            writer: GenericDatumWriter::builder(schema)
                .human_readable(true)
                .build()
                .map_err(undecodable)?,
            reader: GenericDatumReader::builder(schema)
                .human_readable(true)
                .build()
                .map_err(undecodable)?,
            fingerprint: fingerprint(text)?,
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
            let resolving = GenericDatumReader::builder(written.schema)
                .reader_schema(self.schema)
                .build()
                .map_err(undecodable)?;
            let value = resolving.read_value(&mut input).map_err(undecodable)?;
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
        Value::TimestampMicros(micros) => match DateTime::from_timestamp_micros(micros) {
            Some(time) => time.to_rfc3339_opts(SecondsFormat::Micros, true).into(),
            None => micros.into(),
        },
        other => other.try_into().map_err(|error: apache_avro::Error| undecodable(error))?,
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
fn refuse_what_has_no_bound(schema: &Schema) -> Result<(), Undecodable> {
    match schema {
        Schema::Ref { name } => {
            Err(Undecodable(format!("the schema refers to {name}, which could recurse")))
        }
        Schema::Record(record) => {
            record.fields.iter().try_for_each(|f| refuse_what_has_no_bound(&f.schema))
        }
        // Of items without bytes, there may be any number in each of any number of arrays.
        Schema::Array(array) if may_take_no_bytes(&array.items) => {
            Err(Undecodable("the schema has an array of items that take no bytes".to_string()))
        }
        Schema::Array(array) => refuse_what_has_no_bound(&array.items),
        Schema::Map(map) => refuse_what_has_no_bound(&map.types),
        Schema::Union(union) => union.variants().iter().try_for_each(refuse_what_has_no_bound),
        // Memory for it is taken before its bytes are read.
        schema => match fixed_bytes(schema) {
            Some(bytes) if bytes > ALLOCATION_BYTES_MAX => {
                Err(Undecodable(format!("the schema has a fixed of {bytes} bytes")))
            }
            _ => Ok(()),
        },
    }
}

fn may_take_no_bytes(schema: &Schema) -> bool {
    match schema {
        Schema::Null => true,
        Schema::Record(record) => record.fields.iter().all(|f| may_take_no_bytes(&f.schema)),
        schema => fixed_bytes(schema) == Some(0),
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
        ] {
            let refused = refused(&of);
            assert!(refused.as_ref().is_some_and(|said| said.contains(why)), "{of}: {refused:?}");
        }
        for of in [
            r#"{"type": "fixed", "name": "F", "size": 16}"#,
            r#"{"type": "array", "items": ["null", "int"]}"#,
            r#"{"type": "array", "items": {"type": "array", "items": "int"}}"#,
            r#"{"type": "map", "values": "null"}"#,
            r#""null""#,
        ] {
            assert_eq!(refused(of), None, "{of}");
        }
    }
}
