//! Events: facts with a topic, a schema and a key; the Avro codec that writes and reads them; and what a handler
//! gets and returns. A topic is declared once, as a `static`, with all that its publisher, its subscribers, the
//! relay and the command that applies contracts need.
//!
//! Promise: an event has exactly the schema of its topic. A struct whose fields differ from that schema breaks
//! that promise; the contract tests fail then.

pub mod avro;
mod avro_timestamps;
mod handler;
mod schema_bounds;
mod undecodable;

use std::sync::OnceLock;

use serde::{Serialize, de::DeserializeOwned};

use crate::event::avro::Codec;
pub(crate) use crate::event::handler::response_id;
pub use crate::event::handler::{HandlerContext, HandlerResult, Outcome, Unprocessable};

/// A fact that one service publishes and others handle.
///
/// The struct is written and read by serde with exactly the schema of its topic: its name is the
/// record's name, its fields are the record's fields.
pub trait Event: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The topic of the event.
    fn topic() -> &'static Topic;
    /// The key: a service publishes the events of one key in the order in which it made them.
    fn key(&self) -> String;
}

/// The declaration of a topic.
pub struct Topic {
    /// The publisher's name in the singular or plural, a dot, and what happened or what exists: `orders.created`,
    /// `stock.items`. Also the schema's file name and, with `-value`, its registry subject.
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
    /// Whether its events are about persons.
    pub class: DataClass,
    /// The text of its Avro schema.
    pub schema: &'static str,
    codec: OnceLock<Codec>,
}

/// How long the records of a topic are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// Facts: each record for this many days. A consumer may be down that long, less a day.
    Days(u32),
    /// State: the newest record of each key, for ever. Its consumers guard themselves by a version and need no
    /// inbox. A key is never deleted, since an empty record is a dead letter: a field of the event marks a
    /// deletion.
    Compact,
}

/// Whether the events of a topic are about persons, which decides who may read them and for how long they exist.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DataClass {
    /// They are not.
    #[default]
    Open,
    /// They have a field that is personal: in the schema it has the attribute `"personal": true`. The publisher and
    /// the subscribers alone have rights to the records, which end by themselves after
    /// [`PERSONAL_DAYS_MAX`] days at most.
    Personal,
}

/// How long the records of a personal topic are kept, at most.
pub const PERSONAL_DAYS_MAX: u32 = 14;

/// Which records of a topic its subscribers read, if a producer wrote some of them in a transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isolation {
    /// All of them, at once. For a topic whose publisher uses no transactions, as the relay does not: an open
    /// transaction of another producer would otherwise block the records that the publisher wrote behind it.
    #[default]
    ReadUncommitted,
    /// The records of committed transactions and those outside of transactions, up to the first transaction that is
    /// still open.
    ReadCommitted,
}

impl Topic {
    /// A topic whose publisher uses no transactions.
    pub const fn new(
        name: &'static str,
        publisher: &'static str,
        subscribers: &'static [&'static str],
        partitions: i32,
        retention: Retention,
        schema: &'static str,
    ) -> Topic {
        let codec = OnceLock::new();
        Topic {
            name,
            publisher,
            subscribers,
            partitions,
            retention,
            isolation: Isolation::ReadUncommitted,
            class: DataClass::Open,
            schema,
            codec,
        }
    }

    /// The same topic, for a publisher that writes in transactions: subscribers read committed records only.
    pub const fn read_committed(mut self) -> Topic {
        self.isolation = Isolation::ReadCommitted;
        self
    }

    /// The same topic, with events about persons.
    ///
    /// # Panics
    /// If it is compacted or keeps its records for too long: they could not be erased. In a `static`, that is an
    /// error of the compiler.
    pub const fn personal(mut self) -> Topic {
        assert!(
            matches!(self.retention, Retention::Days(..=PERSONAL_DAYS_MAX)),
            "the records of a personal topic end after 14 days at most, and it is not compacted"
        );
        self.class = DataClass::Personal;
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

/// An event on its way into the outbox: encoded, but without an envelope yet.
#[derive(Debug)]
pub struct Outgoing {
    /// Its topic.
    pub topic: &'static Topic,
    /// Its key.
    pub key: String,
    /// Its Avro body, without the wire header, which the relay adds.
    pub body: Vec<u8>,
}

impl Outgoing {
    /// Encodes an event with its topic's own schema.
    ///
    /// # Panics
    /// If the struct does not fit its schema, which the contract tests rule out.
    pub fn from_event<E: Event>(event: &E) -> Outgoing {
        let body = E::topic().codec().encode(event).expect("the struct fits its schema");
        Outgoing { topic: E::topic(), key: event.key(), body }
    }

    /// # Panics
    /// If another service is the publisher of its topic. This service has not stored its schema, so the relay
    /// would back off its topic for ever.
    pub(crate) fn assert_published_by(&self, service: &str) {
        let Topic { name, publisher, .. } = self.topic;
        assert!(*publisher == service, "{name} is published by {publisher} and not by {service}");
    }
}

impl std::fmt::Debug for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_personal_topic_is_neither_compacted_nor_kept_for_long() {
        let personal = |retention| {
            std::panic::catch_unwind(|| Topic::new("a.b", "a", &[], 1, retention, "").personal())
        };
        assert_eq!(personal(Retention::Days(14)).unwrap().class, DataClass::Personal);
        for refused in [Retention::Days(15), Retention::Compact] {
            assert!(personal(refused).is_err(), "{refused:?}");
        }
    }
}
