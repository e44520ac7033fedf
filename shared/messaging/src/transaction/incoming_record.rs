//! A record on its way into a transaction, with the handler of its event: from Kafka, from the schedule, or from a dead
//! letter.

use std::time::Duration;

use chrono::{DateTime, Utc};
use opentelemetry::trace::{SpanBuilder, SpanKind, Status, TraceContextExt};
use opentelemetry::{Context, KeyValue};
use rdkafka::message::{Message, OwnedMessage};
use uuid::Uuid;

use crate::dead_letter::DeadLetterReason;
use crate::dead_letter::discard_impact::DiscardImpact;
use crate::event::timer::TimerKey;
use crate::event::{Effects, HandlerContext, Retention, Topic, Unprocessable};
use crate::telemetry;
use crate::telemetry::labels::Labels;
use crate::unit_of_work::UnitOfWork;

/// An event without its type, as a transaction needs it: the keys of its rows, its handler, and the cost of
/// discarding it.
pub trait EventHandler<R: UnitOfWork>: Send + Sync {
    fn keys(&self, keys: &mut R::Keys);
    /// [`HandlerContext::event_id`] of the decision that an event causes.
    fn response_id(&self, event_id: Uuid) -> Uuid;
    fn decide(&self, rows: &mut R, context: HandlerContext) -> Result<Effects, Unprocessable>;
    fn discard_impact(&self, rows: &R) -> DiscardImpact;
}

/// Where a record comes from.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    /// A topic of Kafka.
    Topic(&'static Topic),
    /// The timers of this name, or what came back of the calls of this name.
    Scheduled(&'static str),
}

impl Source {
    /// The name of the topic, the timer or the call.
    pub fn name(self) -> &'static str {
        match self {
            Source::Topic(topic) => topic.name,
            Source::Scheduled(name) => name,
        }
    }
}

/// A record from Kafka, from the schedule or from a dead letter, with its headers read and its content decoded.
pub struct IncomingRecord<R: UnitOfWork> {
    pub message: OwnedMessage,
    pub event_id: Option<Uuid>,
    /// The event that caused what its handler decides: the event itself, and for a timer what set it.
    pub causation_id: Option<Uuid>,
    /// The timer whose row fires. A dead letter has none: its row is gone.
    pub timer: Option<TimerKey>,
    pub parent: Context,
    pub sent_at: Option<DateTime<Utc>>,
    pub content: Content<R>,
}

pub enum Content<R: UnitOfWork> {
    Event(Source, Box<dyn EventHandler<R>>),
    DeadLetter(DeadLetterReason),
    /// Its schema is not known yet. `is_unregistered` if a healthy registry answered that it does not have the schema.
    SchemaPending {
        reason: String,
        is_unregistered: bool,
    },
}

impl<R: UnitOfWork> IncomingRecord<R> {
    /// The event's key in the inbox. Only facts have one: records of state are guarded by their version.
    pub fn inbox_key(&self) -> Option<(Uuid, &'static str)> {
        match &self.content {
            Content::Event(Source::Topic(Topic { retention: Retention::Compact, .. }), _) => None,
            Content::Event(source, _) => Some((self.event_id?, source.name())),
            Content::DeadLetter(_) | Content::SchemaPending { .. } => None,
        }
    }

    pub fn position(&self) -> (&str, i32, i64) {
        (self.message.topic(), self.message.partition(), self.message.offset())
    }

    /// Whether it waits for its schema.
    pub fn is_unread(&self) -> bool {
        matches!(self.content, Content::SchemaPending { .. })
    }

    pub fn as_dead_letter(&self) -> Option<(&OwnedMessage, Option<Uuid>, &DeadLetterReason)> {
        match &self.content {
            Content::DeadLetter(cause) => Some((&self.message, self.event_id, cause)),
            Content::Event(..) | Content::SchemaPending { .. } => None,
        }
    }

    /// Its age, as far as the broker's clock and this one agree.
    pub fn age(&self) -> Option<Duration> {
        let written_at = DateTime::from_timestamp_millis(self.message.timestamp().to_millis()?)?;
        (Utc::now() - written_at).to_std().ok()
    }

    /// Its position and its event id, for the log.
    pub fn describe(&self) -> String {
        let event = self.event_id.map_or("no event id".to_string(), |id| format!("event {id}"));
        let (topic, partition, offset) = self.position();
        format!("{topic}[{partition}]@{offset} ({event})")
    }

    fn key(&self) -> &str {
        let key = self.message.key().and_then(|key| std::str::from_utf8(key).ok());
        key.unwrap_or_default()
    }

    /// What the lines of the log about this record have, beside its trace.
    pub fn labels(&self) -> Labels {
        let labels = Labels::default();
        labels.set("topic", self.message.topic());
        labels.set("key", self.key());
        if let Some(event_id) = self.event_id {
            labels.set("event_id", &event_id.to_string());
        }
        labels
    }

    /// Calls something whose lines of the log are about this record.
    pub fn in_context<T>(&self, call: impl FnOnce() -> T) -> T {
        let _current = self.parent.with_value(self.labels()).attach();
        call()
    }

    /// Marks the trace of this record: it is a dead letter now.
    pub fn trace_dead_letter(&self, reason: &str) {
        let topic = self.message.topic();
        let span = telemetry::start_span(&self.parent, || {
            SpanBuilder::from_name(format!("store dead letter of {topic}")).with_attributes([
                KeyValue::new("messaging.destination.name", topic.to_owned()),
                KeyValue::new("messaging.kafka.message.key", self.key().to_owned()),
            ])
        });
        span.span().set_status(Status::error(reason.to_owned()));
    }

    /// The span of handling this event: a child of the one that published it, or that set the timer.
    pub fn span(&self, source: Source) -> Context {
        telemetry::start_span(&self.parent, || {
            let event_id = self.event_id.map(|id| id.to_string()).unwrap_or_default();
            let span = SpanBuilder::from_name(format!("process {}", source.name()));
            match source {
                Source::Scheduled(_) => span.with_kind(SpanKind::Internal).with_attributes([
                    KeyValue::new("scheduled.key", self.key().to_owned()),
                    KeyValue::new("scheduled.id", event_id),
                ]),
                Source::Topic(topic) => {
                    let (_, partition, offset) = self.position();
                    span.with_kind(SpanKind::Consumer).with_attributes([
                        KeyValue::new("messaging.system", "kafka"),
                        KeyValue::new("messaging.operation.name", "process"),
                        KeyValue::new("messaging.operation.type", "process"),
                        KeyValue::new("messaging.destination.name", topic.name),
                        KeyValue::new("messaging.destination.partition.id", partition.to_string()),
                        KeyValue::new("messaging.kafka.offset", offset),
                        KeyValue::new("messaging.kafka.message.key", self.key().to_owned()),
                        KeyValue::new("messaging.message.id", event_id),
                    ])
                }
            }
        })
    }
}
