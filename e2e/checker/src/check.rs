//! One run of the checker: it waits for quiescence, reads the databases and all topics, runs every
//! check and returns a [`Verdict`].

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use anyhow::Result;
use chassis::event::{Retention, Topic};
use chrono::{DateTime, TimeDelta, Utc};
use uuid::Uuid;

use crate::dead_letters::DeadLetterIndex;
use crate::envelope::Envelope;
use crate::findings::Findings;
use crate::format::group_digits;
use crate::inbox::{InboxContext, check_inbox};
use crate::invariants::MessagingInvariant::{self, Quiescent};
use crate::outbox_log::{self, Arrival, OutboxCheck};
use crate::record::{EventRecord, RecordPosition};
use crate::sources::{Sources, System};
use crate::topics::{KeepRecords, Topics};
use crate::writer_schemas::WriterSchema;

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
    for pending in sources.wait_for_quiescence(timeout, async || Ok(Vec::new())).await? {
        findings.add(Quiescent, "not quiescent", || pending);
    }
    let before = sources.end_offsets().await?;
    let discarded = sources.discarded_events().await?;
    let dead_letters = DeadLetterIndex::from_rows(&sources.dead_letters().await?, discarded);
    let topics = Topics::<Events>::read(system, dead_letters.positions().collect()).await?;
    let services: Vec<&str> = system.databases.keys().copied().collect();
    topics.check(&system.subscriptions, &services, &dead_letters, &mut findings);
    let retained_since = retained_since(system.topics);
    let context =
        InboxContext { dead_letters: &dead_letters, retained_since, unanswered: &BTreeSet::new() };
    let (mut handled, mut logged) = (BTreeMap::new(), BTreeMap::new());
    for (service, db) in sources.databases() {
        let events = topics.kept.records.iter().copied();
        let (consumed, found) = (&system.subscriptions, &mut findings);
        let matched = check_inbox(service, consumed, db, events, &context, found).await?;
        handled.insert(*service, matched);
        if outbox_log::is_installed(db).await? {
            let (arrivals, skew_ms) = (&topics.kept.arrivals, sources.clock_skew_ms()?);
            let mut check = OutboxCheck::new(system.topics, arrivals, retained_since, skew_ms);
            let count = outbox_log::check(service, db, &mut check, &mut findings).await?;
            logged.insert(*service, count);
        }
    }
    let is_unchanged = sources.end_offsets().await? == before;
    findings.unless(is_unchanged, Quiescent, "not quiescent", || {
        "records were written during the check. Stop all clients, and check again".to_string()
    });
    let unknown_records = topics.unknown.len() as u64;
    Ok(Verdict { records: topics.records, unknown_records, handled, logged, findings })
}

/// The time since when every topic of facts has all its records.
pub fn retained_since(topics: &[&Topic]) -> DateTime<Utc> {
    let days = topics.iter().filter_map(|topic| match topic.retention {
        Retention::Days(days) => Some(i64::from(days)),
        Retention::Compact => None,
    });
    let days = days.min().unwrap_or(RETENTION_SLACK_DAYS) - RETENTION_SLACK_DAYS;
    Utc::now() - TimeDelta::days(days)
}

/// What this checker keeps of the records.
#[derive(Default)]
struct Events {
    records: Vec<EventRecord>,
    /// The first record of each event.
    arrivals: HashMap<Uuid, Arrival>,
}

impl KeepRecords for Events {
    fn keep(
        &mut self,
        position: RecordPosition,
        envelope: &Envelope<'_>,
        schema: &WriterSchema,
    ) -> Result<(), String> {
        schema.read_fields(envelope.body)?;
        let event_id = envelope.event_id;
        self.records.push(EventRecord { event_id, position });
        let is_republished = envelope.is_republished(envelope.key.unwrap_or_default());
        let arrival = Arrival { position, appended_ms: envelope.appended_ms(), is_republished };
        let first = self.arrivals.entry(event_id).or_insert(arrival);
        // The partitions of a topic are read in any order.
        if arrival.appended_ms < first.appended_ms {
            *first = arrival;
        }
        Ok(())
    }
}
