//! One run of the checker: it waits for quiescence, reads the databases and all topics, runs every
//! check and returns a [`Verdict`].

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chassis::event::{Retention, Topic};
use chrono::{TimeDelta, Utc};
use futures::stream::StreamExt;
use rdkafka::message::Message;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::dead_letters::{DeadLetterIndex, check_unknown_record};
use crate::envelope::Envelope;
use crate::findings::Findings;
use crate::format::group_digits;
use crate::inbox::{InboxCheck, InboxContext, InboxRow, uses_inbox};
use crate::invariants::MessagingInvariant::{self, DeadLetters, Quiescent};
use crate::outbox_log::{self, Arrival, OutboxCheck};
use crate::record::{EventRecord, RecordPosition, UnknownRecord};
use crate::sources::{Sources, System};
use crate::topic_reader::read_topic;
use crate::writer_schemas::WriterSchemas;

const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Kafka may delete a segment a little before the retention of its topic is over.
const RETENTION_SLACK_DAYS: i64 = 1;

/// The result of one run of the checker.
#[derive(Debug)]
pub struct Verdict {
    /// The number of records in all topics.
    pub records: u64,
    /// How many of them cannot be read.
    pub unknown_records: u64,
    /// The number of events that each subscriber handled, by service.
    pub handled: BTreeMap<&'static str, u64>,
    /// The number of events that each publisher logged, by service; those without the outbox log are
    /// missing.
    pub logged: BTreeMap<&'static str, u64>,
    /// Everything that violates an invariant.
    pub findings: Findings<MessagingInvariant>,
}

impl Verdict {
    /// Whether no invariant is violated.
    pub fn holds(&self) -> bool {
        self.findings.is_empty()
    }

    /// The report: totals and findings, line by line.
    pub fn lines(&self) -> Vec<String> {
        let by_service = |counts: &BTreeMap<&'static str, u64>| {
            let counts =
                counts.iter().map(|(name, count)| format!("{name} {}", group_digits(*count)));
            counts.collect::<Vec<_>>().join(", ")
        };
        let (records, unknown) = (group_digits(self.records), group_digits(self.unknown_records));
        let mut lines = vec![
            format!("  records   {records}, {unknown} of them unknown"),
            format!("  handled   each once: {}", by_service(&self.handled)),
            format!("  published since the outbox log: {}", by_service(&self.logged)),
        ];
        lines.extend(self.findings.lines());
        lines
    }
}

/// Waits for quiescence for at most `timeout`, then checks everything. Clients must send no commands
/// meanwhile.
///
/// # Errors
/// If Kafka, the registry or a database does not respond, or a topic is missing. What violates an
/// invariant is no error, and is in the verdict.
pub async fn check(system: &System, timeout: Duration) -> Result<Verdict> {
    let sources = Sources::connect(system).await?;
    let mut findings = Findings::default();
    for pending in wait_for_quiescence(&sources, timeout).await? {
        findings.add(Quiescent, "not quiescent", || pending);
    }
    let before = sources.end_offsets().await?;
    let discarded = sources.discarded_events().await?;
    let dead_letters = DeadLetterIndex::from_rows(&sources.dead_letters().await?, discarded);
    let snapshot = read_all(system, dead_letters.positions().collect()).await?;
    for unknown in &snapshot.unknown {
        let subscribers = unknown.position.topic.subscribers.iter().copied();
        let known = subscribers.filter(|service| system.databases.contains_key(service));
        let known = Vec::from_iter(known);
        check_unknown_record(unknown, &known, &dead_letters, &mut findings);
    }
    for position in &snapshot.missing {
        findings.add(DeadLetters, "no record", || {
            format!("{position}: a dead letter without its record in the topic")
        });
    }
    let retained_since = Utc::now() - retention(system.topics);
    let context =
        InboxContext { dead_letters: &dead_letters, retained_since, unanswered: &BTreeSet::new() };
    let (mut handled, mut logged) = (BTreeMap::new(), BTreeMap::new());
    for (service, db) in sources.databases() {
        let matched = check_inbox(service, &sources, &snapshot, &context, &mut findings).await?;
        handled.insert(*service, matched);
        if outbox_log::is_installed(db).await? {
            let (arrivals, skew_ms) = (&snapshot.arrivals, sources.clock_skew_ms()?);
            let mut check = OutboxCheck::new(system.topics, arrivals, retained_since, skew_ms);
            let count = outbox_log::check(service, db, &mut check, &mut findings).await?;
            logged.insert(*service, count);
        }
    }
    let is_unchanged = sources.end_offsets().await? == before;
    findings.unless(is_unchanged, Quiescent, "not quiescent", || {
        "records were written during the check. Stop all clients, and check again".to_string()
    });
    let unknown_records = snapshot.unknown.len() as u64;
    Ok(Verdict { records: snapshot.records, unknown_records, handled, logged, findings })
}

/// Returns the work that is still pending at the deadline.
async fn wait_for_quiescence(sources: &Sources, timeout: Duration) -> Result<Vec<String>> {
    let began = Instant::now();
    loop {
        let pending = sources.pending_messages().await?;
        if pending.is_empty() || began.elapsed() > timeout {
            return Ok(pending);
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// How long every topic of facts keeps its records, at least.
fn retention(topics: &[&Topic]) -> TimeDelta {
    let days = topics.iter().filter_map(|topic| match topic.retention {
        Retention::Days(days) => Some(i64::from(days)),
        Retention::Compact => None,
    });
    TimeDelta::days(days.min().unwrap_or(RETENTION_SLACK_DAYS) - RETENTION_SLACK_DAYS)
}

async fn check_inbox(
    service: &'static str,
    sources: &Sources,
    snapshot: &TopicsSnapshot,
    context: &InboxContext<'_>,
    findings: &mut Findings<MessagingInvariant>,
) -> Result<u64> {
    let is_received = |record: &&EventRecord| uses_inbox(service, record.position.topic);
    let mut received: Vec<EventRecord> =
        snapshot.events.iter().filter(is_received).copied().collect();
    received.sort_unstable_by_key(|record| record.event_id);
    let mut check = InboxCheck::new(service, &received, context);
    let mut rows = sqlx::query_as::<_, InboxRow>(
        "select event_id, topic, received_at from chassis.inbox order by event_id",
    )
    .fetch(sources.db(service));
    while let Some(row) = rows.next().await {
        check.check_row(&row?, findings);
    }
    Ok(check.finish(findings))
}

/// All records of all topics.
#[derive(Default)]
struct TopicsSnapshot {
    records: u64,
    events: Vec<EventRecord>,
    /// The first record of each event.
    arrivals: HashMap<Uuid, Arrival>,
    unknown: Vec<UnknownRecord>,
    /// The positions of dead letters without a record.
    missing: HashSet<RecordPosition>,
}

/// Reads every topic. Positions without a record are reported as missing.
async fn read_all(system: &System, positions: HashSet<RecordPosition>) -> Result<TopicsSnapshot> {
    let mut schemas = WriterSchemas::new(&system.registry, system.registry_ca.as_deref())?;
    let system = system.clone();
    tokio::task::spawn_blocking(move || {
        let mut snapshot = TopicsSnapshot { missing: positions, ..TopicsSnapshot::default() };
        for topic in system.topics.iter().copied() {
            let watermarks = read_topic(&system.kafka, topic, |position, message| {
                snapshot.add_record(position, message, &mut schemas)
            });
            let watermarks = watermarks.with_context(|| format!("reading {}", topic.name))?;
            snapshot.missing.retain(|position| {
                let partition = usize::try_from(position.partition).unwrap_or_default();
                let low = watermarks.get(partition).map_or(0, |(low, _)| *low);
                // Compaction may have removed it.
                let is_kept = topic.retention != Retention::Compact && position.offset >= low;
                position.topic.name != topic.name || is_kept
            });
        }
        Ok(snapshot)
    })
    .await?
}

impl TopicsSnapshot {
    fn add_record(
        &mut self,
        position: RecordPosition,
        message: &impl Message,
        schemas: &mut WriterSchemas,
    ) -> Result<()> {
        self.records += 1;
        self.missing.remove(&position);
        let reason = match Envelope::read(message) {
            Err(reason) => reason,
            Ok(envelope) => match schemas.of_record(position.topic, &envelope)? {
                None => format!("the registry has no schema {}", envelope.schema_id),
                Some(schema) => match schema.read_fields(envelope.body) {
                    Err(reason) => reason,
                    Ok(_) => {
                        self.add_event(position, &envelope);
                        return Ok(());
                    }
                },
            },
        };
        let hash = Sha256::digest(message.payload().unwrap_or_default()).into();
        self.unknown.push(UnknownRecord { position, hash, reason });
        Ok(())
    }

    fn add_event(&mut self, position: RecordPosition, envelope: &Envelope) {
        let event_id = envelope.event_id;
        self.events.push(EventRecord { event_id, position });
        let is_republished = envelope.is_republished(envelope.key.unwrap_or_default());
        let arrival = Arrival { position, appended_ms: envelope.appended_ms(), is_republished };
        match self.arrivals.entry(event_id) {
            // The partitions of a topic are read in any order.
            Entry::Occupied(mut first) if arrival.appended_ms < first.get().appended_ms => {
                first.insert(arrival);
            }
            Entry::Occupied(_) => {}
            Entry::Vacant(place) => {
                place.insert(arrival);
            }
        }
    }
}
