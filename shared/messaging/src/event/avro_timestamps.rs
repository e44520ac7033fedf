//! Timestamps of a body that was written with another version of its schema, converted to the unit of the
//! reader's schema.

use std::collections::HashMap;

use apache_avro::Schema;
use apache_avro::schema::Name;
use apache_avro::types::Value;

use crate::event::undecodable::Undecodable;

/// Converts the times of a value to the units of the reader's schema.
///
/// Avro's resolution refuses a time in another unit; this function converts it. Avro's resolution reads a number
/// without a unit in the reader's unit, which may be wrong by a factor of a thousand or more; this function refuses
/// it.
pub(super) fn convert_timestamps(
    reader: &Schema,
    names: &HashMap<Name, &'static Schema>,
    value: Value,
) -> Result<Value, Undecodable> {
    let inside = |schema, value| convert_timestamps(schema, names, value);
    Ok(match (reader, value) {
        (Schema::Ref { name }, value) => match names.get(name) {
            Some(schema) => inside(schema, value)?,
            None => value,
        },
        (reader, Value::Union(_, value)) => inside(reader, *value)?,
        (Schema::Union(union), value) => {
            let alike = |schema: &&Schema| match &value {
                Value::Record(_) => matches!(schema, Schema::Record(_) | Schema::Ref { .. }),
                Value::Array(_) => matches!(schema, Schema::Array(_)),
                Value::Map(_) => matches!(schema, Schema::Map(_)),
                Value::Null => false,
                _ => timestamp_unit(schema).is_some(),
            };
            match union.variants().iter().find(alike) {
                Some(schema) => inside(schema, value)?,
                None => value,
            }
        }
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
        (reader, value) => match timestamp_unit(reader) {
            Some(unit) => convert_timestamp(value, unit)?,
            None => value,
        },
    })
}

/// How many units are a second, and the constructor of a time in that unit.
type TimestampUnit = (i64, fn(i64) -> Value);

/// The unit of a timestamp; times of day and local times are not converted.
fn timestamp_unit(schema: &Schema) -> Option<TimestampUnit> {
    match schema {
        Schema::TimestampMillis => Some((1_000, Value::TimestampMillis)),
        Schema::TimestampMicros => Some((1_000_000, Value::TimestampMicros)),
        Schema::TimestampNanos => Some((1_000_000_000, Value::TimestampNanos)),
        _ => None,
    }
}

fn convert_timestamp(value: Value, (unit, new): TimestampUnit) -> Result<Value, Undecodable> {
    let (time, written_unit) = match value {
        Value::TimestampMillis(time) => (time, 1_000),
        Value::TimestampMicros(time) => (time, 1_000_000),
        Value::TimestampNanos(time) => (time, 1_000_000_000),
        Value::Long(_) | Value::Int(_) => {
            return Err(Undecodable("a time was written as a number without a unit".to_string()));
        }
        other => return Ok(other),
    };
    let time = match unit >= written_unit {
        true => time.checked_mul(unit / written_unit),
        false => Some(time.div_euclid(written_unit / unit)),
    };
    time.map(new).ok_or_else(|| Undecodable("a time is too far away".to_string()))
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use crate::event::avro::Codec;

    /// A time since 1970, in the unit of the schema.
    #[derive(Debug, PartialEq, Serialize, serde::Deserialize)]
    struct Timestamped {
        at: Option<i64>,
    }

    #[test]
    fn a_time_in_another_unit_is_converted_and_one_without_a_unit_is_refused() {
        let with = |unit: &str| {
            let at = format!(r#"{{"type": "long"{unit}}}"#);
            Codec::new(&format!(
                r#"{{"type": "record", "name": "Timestamped", "fields": [{{"name": "at", "type": ["null", {at}]}}]}}"#
            ))
            .unwrap()
        };
        let named = |unit: &str| with(&format!(r#", "logicalType": "{unit}""#));
        let reader = named("timestamp-micros");
        let read = |written: &Codec, at: i64| {
            let body = written.encode(&Timestamped { at: Some(at) }).unwrap();
            reader.decode::<Timestamped>(written, &body).map(|Timestamped { at }| at.unwrap())
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
