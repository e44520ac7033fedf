//! What an event is: a fact with a topic, a schema and a key.
//!
//! A topic is declared once, as a `static`, and says everything that publisher, subscribers, relay
//! and the command that applies contracts need to know of it.

use std::sync::OnceLock;

use chrono::{DateTime, Utc};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use crate::avro::Codec;

/// A fact that one service publishes and others hear.
///
/// The struct is written and read by serde with exactly the schema of its topic: its name is the
/// record's name, its fields are the record's fields.
pub trait Event: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// Where it goes.
    fn topic() -> &'static Topic;
    /// Whose order it keeps: a service's records of one key are published in the order they were made.
    fn key(&self) -> String;
}

/// The declaration of a topic.
pub struct Topic {
    /// The publisher's name, or that and an s, a dot, and what happened or what there is:
    /// `orders.created`, `stock.items`. Also the schema's file name and, with `-value`, its registry subject.
    pub name: &'static str,
    /// The one service that writes it.
    pub publisher: &'static str,
    /// The services that read it; each is a consumer group.
    pub subscribers: &'static [&'static str],
    /// How many instances of a service can share it, at most.
    pub partitions: i32,
    /// How long its records are kept.
    pub retention: Retention,
    /// Which of its records are read.
    pub isolation: Isolation,
    /// The text of its Avro schema.
    pub schema: &'static str,
    codec: OnceLock<Codec>,
}

/// How long the records of a topic are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Facts: each record for this many days. A consumer may be down that long, less a day.
    Days(u32),
    /// State: the newest record of each key, for ever. Its consumers guard themselves by a version
    /// and need no inbox. A key is never deleted, since an empty record is a dead letter: a field
    /// says that what it stands for is gone.
    Compact,
}

/// Which records of a topic its subscribers read, where a producer wrote some in a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isolation {
    /// All, and at once. For a topic whose publisher uses no transactions, as this relay does not: a
    /// stranger's open transaction would otherwise stop what the publisher wrote behind it.
    #[default]
    ReadUncommitted,
    /// Those of committed transactions, and those of none, up to the first transaction that is still open.
    ReadCommitted,
}

impl Topic {
    /// What stands in the struct, field by field, of a topic whose publisher uses no transactions.
    pub const fn new(
        name: &'static str,
        publisher: &'static str,
        subscribers: &'static [&'static str],
        partitions: i32,
        retention: Retention,
        schema: &'static str,
    ) -> Topic {
        let codec = OnceLock::new();
        let isolation = Isolation::ReadUncommitted;
        Topic { name, publisher, subscribers, partitions, retention, isolation, schema, codec }
    }

    /// The same topic, if its publisher writes in transactions: subscribers read what was committed.
    pub const fn read_committed(mut self) -> Topic {
        self.isolation = Isolation::ReadCommitted;
        self
    }

    /// The registry's name for this topic's schema (Confluent's `TopicNameStrategy`).
    pub fn subject(&self) -> String {
        format!("{}-value", self.name)
    }

    /// Writer and reader of this topic's own schema, made at first use.
    ///
    /// # Panics
    /// If the schema that was compiled in is not valid Avro; the contract tests use every one.
    pub fn codec(&'static self) -> &'static Codec {
        self.codec.get_or_init(|| Codec::new(self.schema).expect("the committed schema is valid"))
    }
}

/// Under which circumstances a handler or a command decides. They have no clock and no randomness
/// of their own, which is what lets a model checker and a property test call them.
#[derive(Clone, Copy, Debug)]
pub struct At {
    /// Now, by the clock of the service's database, at the start of the transaction.
    pub now: DateTime<Utc>,
    /// The id that the event published in answer will bear; rows record it.
    pub event_id: Uuid,
    /// The id of the event that is being handled; none for a command.
    pub cause: Option<Uuid>,
}

/// What a handler answers: an outcome to publish, nothing, or that the event can't be.
pub type Answer<O> = Result<Option<O>, Impossible>;

/// An event that cannot be, because. It becomes a dead letter; it is never a guess. What may yet come to
/// be, once another event has arrived, is not impossible.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Impossible(pub String);

/// Leaves a handler with [`Impossible`], the reason formatted like `format!`.
#[macro_export]
macro_rules! impossible {
    ($($because:tt)*) => { return Err($crate::event::Impossible(format!($($because)*))) };
}

/// An event on its way into the outbox: encoded, but not yet given an envelope.
#[derive(Debug)]
pub struct Outgoing {
    /// Where it goes.
    pub topic: &'static Topic,
    /// Whose order it keeps.
    pub key: String,
    /// Its Avro body, without the wire header, which the relay adds.
    pub body: Vec<u8>,
}

impl Outgoing {
    /// Encodes an event with its topic's own schema.
    ///
    /// # Panics
    /// If the struct does not fit its schema, which the contract tests rule out.
    pub fn of<E: Event>(event: &E) -> Outgoing {
        let body = E::topic().codec().encode(event).expect("the struct fits its schema");
        Outgoing { topic: E::topic(), key: event.key(), body }
    }

    /// # Panics
    /// If this service is not the one that publishes it. Nobody has stored its schema here, so the relay
    /// would hold it up for ever.
    pub(crate) fn assert_published_by(&self, service: &str) {
        let Topic { name, publisher, .. } = self.topic;
        assert!(*publisher == service, "{name} is published by {publisher} and not by {service}");
    }
}

/// What a handler may answer with: an event, one of several kinds, or `()` for a handler that never
/// publishes. One event a decision, at most: its id is [`At::event_id`].
pub trait Outcome {
    /// The event that says it.
    fn publish(self) -> Option<Outgoing>;
}

impl<E: Event> Outcome for E {
    fn publish(self) -> Option<Outgoing> {
        Some(Outgoing::of(&self))
    }
}

impl Outcome for () {
    fn publish(self) -> Option<Outgoing> {
        None
    }
}

impl std::fmt::Debug for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}
