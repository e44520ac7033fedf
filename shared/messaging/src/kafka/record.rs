//! What a record carries beside the body of its event: the id of its schema and its headers, which are the
//! Kafka binding of CloudEvents in binary mode.

use chrono::{DateTime, Utc};
use opentelemetry::Context as TraceContext;
use rdkafka::message::{Header, Headers, Message, OwnedMessage};
use uuid::Uuid;

use crate::event::avro::{is_fingerprint, unframe};
use crate::telemetry;
use crate::telemetry::panics::catch_panic_silently;

/// The headers of a record; `None` if the name of one is not UTF-8. Kafka accepts any bytes as a name, and the
/// client's library panics if they are not UTF-8.
pub(crate) fn raw_headers(message: &OwnedMessage) -> Option<Vec<Header<'_, &[u8]>>> {
    let headers = message.headers();
    catch_panic_silently(|| headers.into_iter().flat_map(Headers::iter).collect())
}

/// Whether a record has the id of an event, among headers that can be read.
pub(crate) fn has_event_id(message: &OwnedMessage) -> bool {
    raw_headers(message).is_some_and(|headers| read_headers(headers).event_id.is_some())
}

/// The headers of a record that this chassis uses.
#[derive(Default)]
pub(crate) struct EventHeaders<'a> {
    pub event_id: Option<Uuid>,
    pub sent_at: Option<DateTime<Utc>>,
    /// The fingerprint of the writer's schema.
    pub dataschema: Option<&'a str>,
    /// The trace that the event belongs to.
    pub parent: TraceContext,
    /// The event that caused it.
    pub causation_id: Option<Uuid>,
}

/// Reads the headers of an event. If a header occurs twice, the first one counts.
pub(crate) fn read_headers<'a>(headers: Vec<Header<'a, &'a [u8]>>) -> EventHeaders<'a> {
    let (mut id, mut time, mut parent) = (None, None, None);
    let (mut state, mut dataschema, mut cause) = (None, None, None);
    for Header { key, value } in headers {
        let slot = match key {
            "ce_id" => &mut id,
            "ce_time" => &mut time,
            "traceparent" => &mut parent,
            "tracestate" => &mut state,
            "ce_dataschema" => &mut dataschema,
            "ce_causationid" => &mut cause,
            _ => continue,
        };
        slot.get_or_insert_with(|| value.and_then(|value| std::str::from_utf8(value).ok()));
    }
    let id_of = |id: Option<Option<&str>>| id.flatten().and_then(|id| id.parse().ok());
    EventHeaders {
        event_id: id_of(id),
        causation_id: id_of(cause),
        dataschema: dataschema.flatten().filter(|dataschema| is_fingerprint(dataschema)),
        sent_at: time.flatten().and_then(|time| time.parse().ok()),
        parent: telemetry::parse_trace(parent.flatten(), state.flatten()),
    }
}

/// The id of the schema with which a record was written, from its wire header.
pub fn schema_id(message: &OwnedMessage) -> Option<u32> {
    Some(unframe(message.payload()?).ok()?.0)
}

/// The fingerprint of the schema with which a record was written, from its header.
pub fn dataschema(message: &OwnedMessage) -> Option<&str> {
    read_headers(raw_headers(message)?).dataschema
}
