//! From a record to the handler of its event: the topics that a service hears, how their records
//! are read, and what each event causes or costs. Batches from Kafka and letters that an operator
//! replays go through the same.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use opentelemetry::trace::{SpanBuilder, SpanKind};
use opentelemetry::{Context, KeyValue};
use rdkafka::message::{Header, Headers, Message, OwnedMessage};
use uuid::Uuid;

use crate::avro::{Codec, Undecodable, unframe};
use crate::dead_letter::{Cause, Kind};
use crate::event::{Answer, At, Event, Impossible, Isolation, Outcome, Outgoing, Retention, Topic};
use crate::loss::Loss;
use crate::registry::Known;
use crate::rows::{Rows, Touches};
use crate::telemetry;

/// The topics that a service hears.
pub(crate) struct Routes<R: Rows> {
    service: &'static str,
    by_topic: HashMap<&'static str, Route<R>>,
}

/// How the events of a topic become work.
struct Route<R: Rows> {
    topic: &'static Topic,
    read: Read<R>,
}

type Read<R> = Box<dyn Fn(&Codec, &[u8]) -> Result<Box<dyn Work<R>>, Undecodable> + Send + Sync>;

/// An event with the functions that a service has for it.
pub(crate) trait Work<R: Rows>: Send + Sync {
    fn touch(&self, keys: &mut R::Keys);
    fn decide(&self, rows: &mut R, at: At) -> Result<Option<Outgoing>, Impossible>;
    fn loss(&self, rows: &R) -> Loss;
}

type Handler<R, E, O> = fn(&E, &mut R, At) -> Answer<O>;
type IfDiscarded<R, E> = fn(&E, &R) -> Loss;

/// An event that a service hears.
pub(crate) struct Heard<R, E, O> {
    pub service: &'static str,
    pub event: E,
    pub handler: Handler<R, E, O>,
    pub if_discarded: IfDiscarded<R, E>,
}

impl<R: Touches<E>, E: Event, O: Outcome> Work<R> for Heard<R, E, O> {
    fn touch(&self, keys: &mut R::Keys) {
        R::touch(&self.event, keys);
    }
    fn decide(&self, rows: &mut R, at: At) -> Result<Option<Outgoing>, Impossible> {
        let outgoing = (self.handler)(&self.event, rows, at)?.and_then(Outcome::publish);
        Ok(outgoing.inspect(|event| event.assert_published_by(self.service)))
    }
    fn loss(&self, rows: &R) -> Loss {
        (self.if_discarded)(&self.event, rows)
    }
}

/// A record on its way to its effect.
pub(crate) struct Item<R: Rows> {
    pub message: OwnedMessage,
    pub event_id: Option<Uuid>,
    /// The trace that the event belongs to.
    pub parent: Context,
    pub sent_at: Option<DateTime<Utc>>,
    pub content: Content<R>,
}

pub(crate) enum Content<R: Rows> {
    Event(&'static Topic, Box<dyn Work<R>>),
    Dead(Cause),
    /// Its schema is not known yet.
    Unread(Unread),
}

/// Why a record can't be read yet.
pub(crate) struct Unread {
    pub because: String,
    /// A healthy registry does not have the schema, rather than giving no answer.
    pub is_unknown: bool,
}

impl<R: Rows> Routes<R> {
    pub fn of(service: &'static str) -> Routes<R> {
        Routes { service, by_topic: HashMap::new() }
    }

    /// See [`crate::consumer::Consumer::on`].
    pub fn add<E: Event, O: Outcome + 'static>(
        &mut self,
        handler: Handler<R, E, O>,
        if_discarded: IfDiscarded<R, E>,
    ) where
        R: Touches<E>,
    {
        let (topic, service) = (E::topic(), self.service);
        assert!(
            topic.subscribers.contains(&service),
            "{service} is not declared as a subscriber of {}",
            topic.name
        );
        let read = move |written: &Codec, body: &[u8]| {
            let event: E = topic.codec().decode(written, body)?;
            Ok(Box::new(Heard { service, event, handler, if_discarded }) as Box<dyn Work<R>>)
        };
        let earlier = self.by_topic.insert(topic.name, Route { topic, read: Box::new(read) });
        assert!(earlier.is_none(), "{} has two handlers", topic.name);
    }

    pub fn topics(&self) -> BTreeMap<Isolation, Vec<&'static str>> {
        let mut topics = BTreeMap::<Isolation, Vec<&'static str>>::new();
        for Route { topic, .. } in self.by_topic.values() {
            topics.entry(topic.isolation).or_default().push(topic.name);
        }
        topics
    }

    pub fn topic(&self, name: &str) -> Option<&'static Topic> {
        Some(self.by_topic.get(name)?.topic)
    }

    /// Reads a record; `schemas` are those that [`schema_id`] asks for.
    pub fn item(&self, message: OwnedMessage, schemas: &HashMap<u32, Known>) -> Item<R> {
        let (told, content) = match headers(&message) {
            Some(headers) => {
                let told = told(headers);
                let content = self.decode(&message, told.event_id, schemas);
                (told, content)
            }
            None => {
                let reason = "the name of a header is no text".to_string();
                (Told::default(), Err(Undecodable(reason)))
            }
        };
        let content = content.unwrap_or_else(|Undecodable(reason)| {
            Content::Dead(Cause { kind: Kind::Undecodable, reason })
        });
        let Told { event_id, sent_at, parent } = told;
        Item { event_id, parent, sent_at, content, message }
    }

    fn decode(
        &self,
        message: &OwnedMessage,
        event_id: Option<Uuid>,
        schemas: &HashMap<u32, Known>,
    ) -> Result<Content<R>, Undecodable> {
        let route = self.by_topic.get(message.topic());
        let route =
            route.ok_or_else(|| Undecodable("this service does not hear its topic".into()))?;
        let record = message.payload().ok_or_else(|| Undecodable("the record is empty".into()))?;
        let (id, body) = unframe(record)?;
        if event_id.is_none() {
            return Err(Undecodable("the header ce_id is missing or no UUID".into()));
        }
        match &schemas[&id] {
            Known::Schema(written) => Ok(Content::Event(route.topic, (route.read)(written, body)?)),
            Known::Unreadable(because) => Err(Undecodable(because.clone())),
            Known::Unregistered(because) => {
                Ok(Content::Unread(Unread { because: because.clone(), is_unknown: true }))
            }
            Known::Unsettled(because) => {
                Ok(Content::Unread(Unread { because: because.clone(), is_unknown: false }))
            }
        }
    }
}

/// The id of the schema that a record says it was written with.
pub(crate) fn schema_id(message: &OwnedMessage) -> Option<u32> {
    Some(unframe(message.payload()?).ok()?.0)
}

impl<R: Rows> Item<R> {
    /// What goes through the inbox: facts. State is guarded by its version.
    pub fn entering(&self) -> Option<(Uuid, &'static str)> {
        match &self.content {
            Content::Event(topic, _) if topic.retention != Retention::Compact => {
                Some((self.event_id?, topic.name))
            }
            _ => None,
        }
    }

    pub fn letter(&self) -> Option<(&OwnedMessage, Option<Uuid>, &Cause)> {
        match &self.content {
            Content::Dead(cause) => Some((&self.message, self.event_id, cause)),
            Content::Event(..) | Content::Unread(_) => None,
        }
    }

    /// The span of handling this event: a child of the one that published it.
    pub fn span(&self, topic: &Topic) -> Context {
        telemetry::span(&self.parent, || {
            SpanBuilder::from_name(format!("process {}", topic.name))
                .with_kind(SpanKind::Consumer)
                .with_attributes([
                    KeyValue::new("messaging.system", "kafka"),
                    KeyValue::new("messaging.operation.name", "process"),
                    KeyValue::new("messaging.operation.type", "process"),
                    KeyValue::new("messaging.destination.name", topic.name),
                    KeyValue::new(
                        "messaging.destination.partition.id",
                        self.message.partition().to_string(),
                    ),
                    KeyValue::new("messaging.kafka.offset", self.message.offset()),
                    KeyValue::new(
                        "messaging.message.id",
                        self.event_id.map(|id| id.to_string()).unwrap_or_default(),
                    ),
                ])
        })
    }
}

/// A record's headers; `None` if one's name is no text. Kafka takes any bytes for a name, and the
/// client's library panics where they are not UTF-8.
pub(crate) fn headers(message: &OwnedMessage) -> Option<Vec<Header<'_, &[u8]>>> {
    let headers = message.headers();
    telemetry::quietly(|| headers.into_iter().flat_map(Headers::iter).collect())
}

/// What is read of a record's headers.
#[derive(Default)]
struct Told {
    event_id: Option<Uuid>,
    sent_at: Option<DateTime<Utc>>,
    parent: Context,
}

/// Of a header that comes twice, the first counts.
fn told(headers: Vec<Header<'_, &[u8]>>) -> Told {
    let (mut id, mut time, mut parent) = (None, None, None);
    for Header { key, value } in headers {
        let place = match key {
            "ce_id" => &mut id,
            "ce_time" => &mut time,
            "traceparent" => &mut parent,
            _ => continue,
        };
        place.get_or_insert_with(|| value.and_then(|value| std::str::from_utf8(value).ok()));
    }
    Told {
        event_id: id.flatten().and_then(|id| id.parse().ok()),
        sent_at: time.flatten().and_then(|time| time.parse().ok()),
        parent: telemetry::context(parent.flatten()),
    }
}
