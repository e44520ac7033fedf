//! The router: the topics that a service subscribes to, and for each the schema and the handler of its events.
//! Batches from Kafka and dead letters that an operator replays are decoded here alike.

use std::collections::BTreeMap;

use rdkafka::message::{Message, OwnedMessage};
use uuid::Uuid;

use crate::dead_letter::DeadLetterReason;
use crate::dead_letter::discard_impact::DiscardImpact;
use crate::event::avro::{Codec, Undecodable, unframe};
use crate::event::{
    Event, HandlerContext, HandlerResult, Isolation, Outcome, OutgoingEvents, Retention, Topic,
    Unprocessable, response_id,
};
use crate::kafka::record::{EventHeaders, raw_headers, read_headers};
use crate::kafka::schema_registry::CachedSchema;
use crate::kafka::writer_schemas::WriterSchemas;
use crate::transaction::incoming_record::{Content, EventHandler, IncomingRecord};
use crate::unit_of_work::{Loads, UnitOfWork};

/// The topics that a service subscribes to.
pub struct EventRouter<R: UnitOfWork> {
    service: &'static str,
    by_topic: Routes<R>,
}

/// The routes of the topics, by name.
pub(crate) type Routes<R> = BTreeMap<&'static str, Route<R>>;

/// How the records of a topic are decoded.
pub(crate) struct Route<R: UnitOfWork> {
    pub topic: &'static Topic,
    pub decode: DecodeFn<R>,
}

/// Decodes the body of an event for the service of this name.
pub(crate) type DecodeFn<R> = Box<
    dyn Fn(&'static str, &Codec, &[u8]) -> Result<Box<dyn EventHandler<R>>, Undecodable>
        + Send
        + Sync,
>;

pub(crate) type HandlerFn<R, E, O> = fn(&E, &mut R, HandlerContext) -> HandlerResult<O>;

/// The function that states what a discard costs.
pub(crate) type DiscardFn<R, E> = fn(&E, &R) -> DiscardImpact;

/// An event with the functions of its service that handle it.
pub struct BoundHandler<R, E, O> {
    pub service: &'static str,
    pub event: E,
    pub handler: HandlerFn<R, E, O>,
    pub on_discard: Option<DiscardFn<R, E>>,
}

impl<R: Loads<E>, E: Event, O: Outcome> EventHandler<R> for BoundHandler<R, E, O> {
    fn keys(&self, keys: &mut R::Keys) {
        R::keys(&self.event, keys);
    }
    fn response_id(&self, event_id: Uuid) -> Uuid {
        response_id(self.service, event_id)
    }
    fn decide(
        &self,
        rows: &mut R,
        context: HandlerContext,
    ) -> Result<OutgoingEvents, Unprocessable> {
        let events = OutgoingEvents::of((self.handler)(&self.event, rows, context)?);
        events.assert_published_by(self.service);
        Ok(events)
    }
    fn discard_impact(&self, rows: &R) -> DiscardImpact {
        match self.on_discard {
            Some(on_discard) => on_discard(&self.event, rows),
            None => default_impact(E::topic(), self.service),
        }
    }
}

/// The impact of an event for which the service states none.
fn default_impact(topic: &Topic, service: &str) -> DiscardImpact {
    let Topic { name, publisher, .. } = topic;
    DiscardImpact::new(match topic.retention {
        Retention::Days(_) => {
            format!("Its effect is lost: {service} never handles this event of {name}.")
        }
        Retention::Compact => format!(
            "{service} keeps the state that it has of this key, until {publisher} publishes the key in {name} again."
        ),
    })
}

impl<R: UnitOfWork> EventRouter<R> {
    pub(super) fn new(service: &'static str, by_topic: Routes<R>) -> EventRouter<R> {
        EventRouter { service, by_topic }
    }

    /// The topics, in the order of their names.
    pub fn topics(&self) -> impl Iterator<Item = &'static Topic> {
        self.by_topic.values().map(|route| route.topic)
    }

    pub fn topics_by_isolation(&self) -> BTreeMap<Isolation, Vec<&'static str>> {
        let mut topics = BTreeMap::<Isolation, Vec<&'static str>>::new();
        for topic in self.topics() {
            topics.entry(topic.isolation).or_default().push(topic.name);
        }
        topics
    }

    pub fn topic(&self, name: &str) -> Option<&'static Topic> {
        Some(self.by_topic.get(name)?.topic)
    }

    /// Reads a record. `schemas` has the schema of the record's schema id.
    pub fn parse(&self, message: OwnedMessage, schemas: &WriterSchemas) -> IncomingRecord<R> {
        let headers = raw_headers(&message);
        let is_readable = headers.is_some();
        let event_headers = headers.map(read_headers).unwrap_or_default();
        let content = match is_readable {
            true => self.decode_content(&message, &event_headers, schemas),
            false => Err(Undecodable("the name of a header is not UTF-8".into())),
        };
        let content = content.unwrap_or_else(|Undecodable(reason)| {
            Content::DeadLetter(DeadLetterReason::undecodable(reason))
        });
        let EventHeaders { event_id, sent_at, parent, .. } = event_headers;
        IncomingRecord { event_id, parent, sent_at, content, message }
    }

    fn decode_content(
        &self,
        message: &OwnedMessage,
        headers: &EventHeaders<'_>,
        schemas: &WriterSchemas,
    ) -> Result<Content<R>, Undecodable> {
        let route = self.by_topic.get(message.topic());
        let route = route
            .ok_or_else(|| Undecodable("this service does not subscribe to its topic".into()))?;
        let record = message.payload().ok_or_else(|| Undecodable("the record is empty".into()))?;
        let (id, body) = unframe(record)?;
        if headers.event_id.is_none() {
            return Err(Undecodable("the header ce_id is missing or no UUID".into()));
        }
        let (reason, is_unregistered) = match schemas.find(id, headers.dataschema) {
            CachedSchema::Resolved(written) => {
                let event = (route.decode)(self.service, &written, body)?;
                schemas.record_use(id, &written);
                return Ok(Content::Event(route.topic, event));
            }
            CachedSchema::Unreadable(because) => return Err(Undecodable(because)),
            CachedSchema::Unregistered(reason) => (reason, true),
            CachedSchema::Pending(reason) | CachedSchema::Reassigned(_, reason) => (reason, false),
        };
        Ok(Content::SchemaPending { reason, is_unregistered })
    }
}
