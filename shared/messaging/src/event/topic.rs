//! The declaration of a topic.

use std::sync::OnceLock;

use crate::event::avro::Codec;

/// The number of partitions of a topic that declares none itself: the most instances of a service that can share it.
///
/// A small number, because librdkafka sends a request for each partition (its issue 1700), so each partition costs
/// every batch a request. Partitions can be added later.
pub const PARTITIONS: i32 = 3;

/// For how many days a topic that declares nothing else keeps its records.
pub const FACT_DAYS: u32 = 14;

/// How long the records of a personal topic are kept, at most.
pub const PERSONAL_DAYS_MAX: u32 = 14;

/// The declaration of a topic. `#[derive(Event)]` makes it.
pub struct Topic {
    /// The publisher's name in the singular or plural, a dot, and what happened or what exists: `orders.created`,
    /// `stock.items`. Also the schema's file name and, with `-value`, its registry subject.
    pub name: &'static str,
    /// The one service that writes it.
    pub publisher: &'static str,
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
    /// They have a field that is personal: in the schema it has the attribute `"personal": true`. The records end by
    /// themselves after [`PERSONAL_DAYS_MAX`] days at most.
    Personal {
        /// The services that may handle them. The owner of personal data says who reads it.
        readers: &'static [&'static str],
    },
}

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
    /// A topic of facts about no person, with [`PARTITIONS`] partitions, that keeps its records for [`FACT_DAYS`]
    /// days. Its publisher uses no transactions.
    pub const fn new(name: &'static str, publisher: &'static str, schema: &'static str) -> Topic {
        Topic {
            name,
            publisher,
            partitions: PARTITIONS,
            retention: Retention::Days(FACT_DAYS),
            isolation: Isolation::ReadUncommitted,
            class: DataClass::Open,
            schema,
            codec: OnceLock::new(),
        }
    }

    /// The same topic with this number of partitions.
    pub const fn partitions(mut self, partitions: i32) -> Topic {
        self.partitions = partitions;
        self
    }

    /// The same topic, which keeps its records for this many days.
    pub const fn days(mut self, days: u32) -> Topic {
        self.retention = Retention::Days(days);
        self
    }

    /// The same topic as one of state: it keeps the newest record of each key.
    pub const fn compacted(mut self) -> Topic {
        self.retention = Retention::Compact;
        self
    }

    /// The same topic, for a publisher that writes in transactions: subscribers read committed records only.
    pub const fn read_committed(mut self) -> Topic {
        self.isolation = Isolation::ReadCommitted;
        self
    }

    /// The same topic, for events about persons. These services alone may handle them.
    ///
    /// # Panics
    /// If its records are kept for more than [`PERSONAL_DAYS_MAX`] days, or for ever: they cannot be erased. In a
    /// `static`, that is an error of the compiler.
    pub const fn personal(mut self, readers: &'static [&'static str]) -> Topic {
        assert!(
            matches!(self.retention, Retention::Days(..=PERSONAL_DAYS_MAX)),
            "the records of a personal topic end after 14 days at most, and it is not compacted"
        );
        self.class = DataClass::Personal { readers };
        self
    }

    /// Whether its events are about persons.
    pub const fn is_personal(&self) -> bool {
        matches!(self.class, DataClass::Personal { .. })
    }

    /// Whether a service may handle its events.
    pub fn admits(&self, service: &str) -> bool {
        match self.class {
            DataClass::Open => true,
            DataClass::Personal { readers } => readers.contains(&service),
        }
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

impl std::fmt::Debug for Topic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_personal_topic_is_neither_compacted_nor_kept_for_long_and_names_its_readers() {
        let topic = Topic::new("a.b", "a", "");
        assert!(topic.admits("c") && !topic.is_personal());
        let personal = topic.personal(&["b"]);
        assert!(personal.admits("b") && !personal.admits("c") && personal.is_personal());
        let kept_long = Topic::new("a.b", "a", "").days(15);
        for refused in [kept_long, Topic::new("a.b", "a", "").compacted()] {
            let personal = std::panic::AssertUnwindSafe(|| refused.personal(&[]));
            assert!(std::panic::catch_unwind(personal).is_err());
        }
    }
}
