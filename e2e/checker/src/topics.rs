//! All records of all topics: how many there are, which of them cannot be read, and what a checker
//! keeps of the others.

use std::collections::HashSet;

use anyhow::{Context, Result};
use chassis::event::{Retention, Subscriptions};
use rdkafka::message::Message;
use sha2::{Digest, Sha256};

use crate::dead_letters::{DeadLetterIndex, check_unknown_record};
use crate::envelope::Envelope;
use crate::findings::Findings;
use crate::invariants::{InvariantName, MessagingInvariant::DeadLetters};
use crate::record::{RecordPosition, UnknownRecord};
use crate::sources::System;
use crate::topic_reader::read_topic;
use crate::writer_schemas::{WriterSchema, WriterSchemas};

/// What a checker keeps of the records that can be read.
pub trait KeepRecords: Default + Send + 'static {
    /// Keeps a record, or returns the reason why it cannot be read.
    fn keep(
        &mut self,
        position: RecordPosition,
        envelope: &Envelope<'_>,
        schema: &WriterSchema,
    ) -> Result<(), String>;
}

/// All records of all topics.
#[derive(Debug, Default)]
pub struct Topics<K> {
    /// The number of records.
    pub records: u64,
    /// Those that cannot be read.
    pub unknown: Vec<UnknownRecord>,
    /// The positions of dead letters without a record.
    pub missing: HashSet<RecordPosition>,
    /// What is kept of those that can be read.
    pub kept: K,
}

impl<K: KeepRecords> Topics<K> {
    /// Reads every topic. `positions` are those of dead letters: each has a record.
    pub async fn read(system: &System, positions: HashSet<RecordPosition>) -> Result<Topics<K>> {
        let mut schemas = WriterSchemas::new(&system.registry, system.registry_ca.as_deref())?;
        let system = system.clone();
        tokio::task::spawn_blocking(move || {
            let mut topics = Topics { missing: positions, ..Topics::default() };
            for topic in system.topics.iter().copied() {
                let watermarks = read_topic(&system.kafka, topic, |position, message| {
                    topics.add_record(position, message, &mut schemas)
                });
                let watermarks = watermarks.with_context(|| format!("reading {}", topic.name))?;
                topics.missing.retain(|position| {
                    let partition = usize::try_from(position.partition).unwrap_or_default();
                    let low = watermarks.get(partition).map_or(0, |(low, _)| *low);
                    // Compaction may have removed it.
                    let is_kept = topic.retention != Retention::Compact && position.offset >= low;
                    position.topic.name != topic.name || is_kept
                });
            }
            Ok(topics)
        })
        .await?
    }

    /// Adds the next record. It fails if the registry does not respond.
    pub fn add_record(
        &mut self,
        position: RecordPosition,
        message: &impl Message,
        schemas: &mut WriterSchemas,
    ) -> Result<()> {
        self.records += 1;
        self.missing.remove(&position);
        let kept = match Envelope::read(message) {
            Err(reason) => Err(reason),
            Ok(envelope) => match schemas.of_record(position.topic, &envelope)? {
                None => Err(format!("the registry has no schema {}", envelope.schema_id)),
                Some(schema) => self.kept.keep(position, &envelope, schema),
            },
        };
        if let Err(reason) = kept {
            let hash = Sha256::digest(message.payload().unwrap_or_default()).into();
            self.unknown.push(UnknownRecord { position, hash, reason });
        }
        Ok(())
    }

    /// Each record that cannot be read is a dead letter of every subscriber among these services, and
    /// each dead letter has its record.
    pub fn check<I: InvariantName>(
        &self,
        subscriptions: &Subscriptions,
        services: &[&str],
        dead_letters: &DeadLetterIndex,
        findings: &mut Findings<I>,
    ) {
        for unknown in &self.unknown {
            let mut known = subscriptions.subscribers(unknown.position.topic);
            known.retain(|it| services.contains(it));
            check_unknown_record(unknown, &known, dead_letters, findings);
        }
        for position in &self.missing {
            findings.add(DeadLetters, "no record", || {
                format!("{position}: a dead letter without its record in the topic")
            });
        }
    }
}
