//! The router: the topics that a service subscribes to, and for each the schema and the handler of its events; and its
//! timers. Batches from Kafka, timers that are due, and dead letters that an operator replays are decoded here alike.

use std::collections::BTreeMap;

use rdkafka::message::{Message, OwnedMessage};
use uuid::Uuid;

use crate::dead_letter::DeadLetterReason;
use crate::dead_letter::discard_impact::DiscardImpact;
use crate::event::avro::{Codec, Undecodable, unframe};
use crate::event::timer::{Guard, TimerKey};
use crate::event::{
    Effects, HandlerContext, HandlerResult, Isolation, Outcome, Retention, Topic, Unprocessable,
    is_scheduled, response_id,
};
use crate::kafka::record::{EventHeaders, raw_headers, read_headers};
use crate::kafka::schema_registry::CachedSchema;
use crate::kafka::writer_schemas::WriterSchemas;
use crate::scheduled::DueRow;
use crate::telemetry;
use crate::transaction::incoming_record::{Content, EventHandler, IncomingRecord, Source};
use crate::unit_of_work::{Loads, UnitOfWork};

/// The topics that a service subscribes to, and its timers.
pub struct EventRouter<R: UnitOfWork> {
    service: &'static str,
    routes: Routes<R>,
}

/// The routes of topics, timers and calls, by name.
pub(crate) type Routes<R> = BTreeMap<&'static str, Route<R>>;

/// How the records of a topic, or what was scheduled under a name, are decoded.
pub(crate) enum Route<R: UnitOfWork> {
    Topic(&'static Topic, DecodeFn<R>),
    Scheduled(&'static str, Guard, JsonDecodeFn<R>),
}

/// What a body is decoded into, for the service of this name.
type Decoded<R> = Result<Box<dyn EventHandler<R>>, Undecodable>;
pub(crate) type DecodeFn<R> = Box<dyn Fn(&'static str, &Codec, &[u8]) -> Decoded<R> + Send + Sync>;
pub(crate) type JsonDecodeFn<R> = Box<dyn Fn(&'static str, &[u8]) -> Decoded<R> + Send + Sync>;

pub(crate) type HandlerFn<R, E, O> = fn(&E, &mut R, HandlerContext) -> HandlerResult<O>;

/// The function that states what a discard costs.
pub(crate) type DiscardFn<R, E> = fn(&E, &R) -> DiscardImpact;

/// An event, or a timer that is due, with the functions of its service that handle it.
pub struct BoundHandler<R, E, O> {
    pub service: &'static str,
    pub source: Source,
    pub event: E,
    pub handler: HandlerFn<R, E, O>,
    pub on_discard: Option<DiscardFn<R, E>>,
}

impl<R: Loads<E>, E: Send + Sync, O: Outcome> EventHandler<R> for BoundHandler<R, E, O> {
    fn keys(&self, keys: &mut R::Keys) {
        R::keys(&self.event, keys);
    }
    fn response_id(&self, event_id: Uuid) -> Uuid {
        response_id(self.service, event_id)
    }
    fn decide(&self, rows: &mut R, context: HandlerContext) -> Result<Effects, Unprocessable> {
        let effects = Effects::of((self.handler)(&self.event, rows, context)?);
        effects.assert_published_by(self.service);
        Ok(effects)
    }
    fn discard_impact(&self, rows: &R) -> DiscardImpact {
        match self.on_discard {
            Some(on_discard) => on_discard(&self.event, rows),
            None => default_impact(self.source, self.service),
        }
    }
}

/// The topics among routes, in the order of their names.
pub(super) fn topics<R: UnitOfWork>(routes: &Routes<R>) -> impl Iterator<Item = &'static Topic> {
    routes.values().filter_map(|route| match route {
        Route::Topic(topic, _) => Some(*topic),
        Route::Scheduled(..) => None,
    })
}

/// The impact of an event for which the service states none.
fn default_impact(source: Source, service: &str) -> DiscardImpact {
    DiscardImpact::new(match source {
        Source::Topic(Topic { name, publisher, retention: Retention::Compact, .. }) => format!(
            "{service} keeps the state that it has of this key, until {publisher} publishes the key in {name} again."
        ),
        Source::Topic(Topic { name, .. }) => {
            format!("Its effect is lost: {service} never handles this event of {name}.")
        }
        Source::Scheduled(name) => {
            format!("Its effect is lost: {service} never handles this {name}.")
        }
    })
}

impl<R: UnitOfWork> EventRouter<R> {
    pub(super) fn new(service: &'static str, routes: Routes<R>) -> EventRouter<R> {
        EventRouter { service, routes }
    }

    /// The topics, in the order of their names.
    pub fn topics(&self) -> impl Iterator<Item = &'static Topic> {
        topics(&self.routes)
    }

    /// Whether it has a handler of a timer.
    pub fn has_timers(&self) -> bool {
        self.timers().next().is_some()
    }

    /// Whether it has a handler of a call, a task or whatever has this prefix.
    pub fn has_any(&self, prefix: &str) -> bool {
        self.timers().any(|(name, _)| name.starts_with(prefix))
    }

    /// The names of the timers and of the calls, each with its guard.
    pub(crate) fn timers(&self) -> impl Iterator<Item = (&'static str, Guard)> {
        self.routes.values().filter_map(|route| match route {
            Route::Scheduled(name, guard, _) => Some((*name, *guard)),
            Route::Topic(..) => None,
        })
    }

    pub fn topics_by_isolation(&self) -> BTreeMap<Isolation, Vec<&'static str>> {
        let mut topics = BTreeMap::<Isolation, Vec<&'static str>>::new();
        for topic in self.topics() {
            topics.entry(topic.isolation).or_default().push(topic.name);
        }
        topics
    }

    pub fn topic(&self, name: &str) -> Option<&'static Topic> {
        match self.routes.get(name)? {
            Route::Topic(topic, _) => Some(topic),
            Route::Scheduled(..) => None,
        }
    }

    /// Reads a timer that is due. The service has a handler of its name.
    pub fn parse_due(&self, row: DueRow) -> IncomingRecord<R> {
        let route = self.routes.get(&*row.source);
        let body = row.body.to_string().into_bytes();
        let (content, timer) = match route {
            Some(Route::Scheduled(source, _, decode)) => (
                decode(self.service, &body)
                    .map(|due| Content::Event(Source::Scheduled(source), due)),
                Some(TimerKey { source, key: row.key.clone() }),
            ),
            _ => (Err(Undecodable(format!("there is no handler of {}", row.source))), None),
        };
        let message = row.to_message(body);
        IncomingRecord {
            event_id: Some(row.event_id),
            causation_id: row.causation_id,
            timer,
            parent: telemetry::parse_trace(Some(&row.traceparent), row.tracestate.as_deref()),
            sent_at: Some(row.due_at),
            content: content.unwrap_or_else(|Undecodable(reason)| {
                Content::DeadLetter(DeadLetterReason::undecodable(reason))
            }),
            message,
        }
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
        let EventHeaders { event_id, sent_at, parent, causation_id, .. } = event_headers;
        let was_scheduled = is_scheduled(message.topic());
        let causation_id = if was_scheduled { causation_id } else { event_id };
        IncomingRecord { event_id, causation_id, timer: None, parent, sent_at, content, message }
    }

    fn decode_content(
        &self,
        message: &OwnedMessage,
        headers: &EventHeaders<'_>,
        schemas: &WriterSchemas,
    ) -> Result<Content<R>, Undecodable> {
        let route = self.routes.get(message.topic());
        let route = route
            .ok_or_else(|| Undecodable("this service does not subscribe to its topic".into()))?;
        let record = message.payload().ok_or_else(|| Undecodable("the record is empty".into()))?;
        let (topic, decode) = match route {
            Route::Topic(topic, decode) => (*topic, decode),
            Route::Scheduled(name, _, decode) => {
                return Ok(Content::Event(Source::Scheduled(name), decode(self.service, record)?));
            }
        };
        let (id, body) = unframe(record)?;
        if headers.event_id.is_none() {
            return Err(Undecodable("the header ce_id is missing or no UUID".into()));
        }
        let (reason, is_unregistered) = match schemas.find(id, headers.dataschema) {
            CachedSchema::Resolved(written) => {
                let event = decode(self.service, &written, body)?;
                schemas.record_use(id, &written);
                return Ok(Content::Event(Source::Topic(topic), event));
            }
            CachedSchema::Unreadable(because) => return Err(Undecodable(because)),
            CachedSchema::Unregistered(reason) => (reason, true),
            CachedSchema::Pending(reason) | CachedSchema::Reassigned(_, reason) => (reason, false),
        };
        Ok(Content::SchemaPending { reason, is_unregistered })
    }
}
