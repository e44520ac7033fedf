//! The envelope of a record: its wire header, its key and its headers, which the relay writes.

use chassis::admin::republish;
use chassis::event::Topic;
use chassis::event::avro::{Codec, unframe};
use chrono::{DateTime, Utc};
use rdkafka::Timestamp;
use rdkafka::message::{Header, Message};
use uuid::Uuid;

use crate::kafka;

/// The envelope of one record.
pub struct Envelope<'a> {
    /// The id of the event.
    pub event_id: Uuid,
    /// The id of the schema with which the body was written.
    pub schema_id: u32,
    /// The encoded event.
    pub body: &'a [u8],
    /// The key, if there is one that is text.
    pub key: Option<&'a str>,
    headers: Vec<Header<'a, &'a [u8]>>,
    appended: Timestamp,
}

impl<'a> Envelope<'a> {
    /// Reads the envelope of a record with an event id.
    ///
    /// # Errors
    /// The reason why the record is unknown, for users.
    pub fn read(message: &'a impl Message) -> Result<Envelope<'a>, String> {
        let payload = message.payload().ok_or("it is empty")?;
        let (schema_id, body) = unframe(payload).map_err(|error| error.0)?;
        let headers = kafka::headers(message).ok_or("the name of a header is not text")?;
        let key = message.key().and_then(|key| std::str::from_utf8(key).ok());
        let appended = message.timestamp();
        let mut envelope =
            Envelope { event_id: Uuid::nil(), schema_id, body, key, headers, appended };
        let event_id = envelope.header("ce_id").ok_or("it has no ce_id")?;
        envelope.event_id = Uuid::parse_str(event_id).map_err(|_| "its ce_id is not a UUID")?;
        Ok(envelope)
    }

    /// The value of a header, if it is text.
    pub fn header(&self, name: &str) -> Option<&'a str> {
        let header = self.headers.iter().find(|header| header.key == name)?;
        std::str::from_utf8(header.value?).ok()
    }

    /// The trace id of its `traceparent`, if that is valid.
    pub fn trace_id(&self) -> Option<&'a str> {
        self.header("traceparent").and_then(trace_id)
    }

    /// Whether an operator had it republished: the trace of a republished event is made from its key,
    /// and no other event has that trace.
    pub fn is_republished(&self, key: &str) -> bool {
        self.header("traceparent") == Some(&*republish::traceparent(key))
    }

    /// When it was appended to its topic, in milliseconds since 1970.
    pub fn appended_ms(&self) -> i64 {
        self.appended.to_millis().unwrap_or_default()
    }

    /// What is wrong with the key, the headers and the append time of a record whose event has this
    /// key, was decided at this time and was written with this schema.
    pub fn faults(
        &self,
        topic: &Topic,
        key: &str,
        occurred_at: DateTime<Utc>,
        schema: &Codec,
    ) -> Vec<String> {
        let mut faults = Vec::new();
        let mut must = |holds: bool, fault: String| {
            if !holds {
                faults.push(fault);
            }
        };
        must(self.key == Some(key), format!("its key is {:?}, not {key}", self.key));
        let source = format!("/{}", topic.publisher);
        for (name, value) in [
            ("ce_specversion", "1.0"),
            ("ce_type", topic.name),
            ("ce_source", &source),
            ("content-type", "application/avro"),
        ] {
            let is = self.header(name);
            must(is == Some(value), format!("{name} is {is:?}, not {value}"));
        }
        // Older versions of a service write none.
        let named = self.header("ce_dataschema");
        let is_named = named.is_none_or(|named| named == schema.dataschema);
        must(is_named, format!("ce_dataschema is {named:?}, not {}", schema.dataschema));
        let time = self.header("ce_time");
        let time = time.and_then(|time| time.parse::<DateTime<Utc>>().ok());
        must(time == Some(occurred_at), format!("ce_time is {time:?}, not {occurred_at}"));
        let trace = self.header("traceparent");
        must(self.trace_id().is_some(), format!("its traceparent is {trace:?}"));
        // The order of arrival is checked with the append time of the broker. The publisher's clock
        // would give the time of sending.
        let is_brokers = matches!(self.appended, Timestamp::LogAppendTime(_));
        let appended = self.appended;
        must(is_brokers, format!("its append time is not set by the broker: {appended:?}"));
        faults
    }
}

/// The trace id of a W3C `traceparent`, if it is valid.
pub fn trace_id(traceparent: &str) -> Option<&str> {
    let parts: Vec<&str> = traceparent.split('-').collect();
    let [version, trace, span, flags] = parts[..] else {
        return None;
    };
    let hex = |text: &str, length| {
        text.len() == length
            && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let fits = version == "00" && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
    let set = |text: &str| text.bytes().any(|b| b != b'0');
    (fits && set(trace) && set(span)).then_some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_traceparent_is_read_strictly() {
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        assert_eq!(trace_id(&format!("00-{trace}-00f067aa0ba902b7-01")), Some(trace));
        for bad in [
            String::new(),
            format!("00-{trace}-00f067aa0ba902b7"),
            format!("00-{trace}-0000000000000000-01"),
            format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)),
            format!("00-{}-00f067aa0ba902b7-01", trace.to_uppercase()),
        ] {
            assert_eq!(trace_id(&bad), None, "{bad}");
        }
    }
}
