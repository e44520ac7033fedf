//! Selects rows of the outbox, sends them, and deletes the rows that the broker acknowledged.
//! [`crate::outbox::relay`] lists the promises that rest on this.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use anyhow::Context;
use metrics::counter;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use sqlx::{AssertSqlSafe, PgConnection};

use crate::crash_point;
use crate::db;
use crate::event::avro::frame;
use crate::kafka::schema_registry::SchemaRegistryClient;
use crate::outbox::backoff::Backoff;
use crate::outbox::in_flight::InFlightRecords;
use crate::outbox::lag::OutboxLag;
use crate::outbox::producer::{Client, DeliveryReport, DeliveryStatus, InFlight, Producer};
use crate::outbox::query::{
    OUTBOX_SCAN_TIMEOUT, OutboxRow, read_rows, record_headers, select_statement, send_span,
};
use crate::outbox::schema_ids::resolve_schema_id;
use crate::telemetry::refusals;

pub(crate) const BATCH_ROWS_MAX: usize = 1_000;

/// A producer is replaced if records are in flight and no delivery report arrives for so long. A producer may
/// request its id from the same broken broker for ever (librdkafka's issue 3848), and while Kafka is unreachable a
/// new producer costs nothing.
pub const DELIVERY_SILENCE_MAX: Duration = Duration::from_secs(60);

/// The state of the active relay between two polls of the outbox.
pub struct OutboxSender<'a> {
    /// `ce_source` of every record.
    source: String,
    pub producer: Producer,
    registry: &'a SchemaRegistryClient,
    pub in_flight: InFlightRecords,
    backoff: Backoff,
    pub lag: OutboxLag,
    /// Rows that a poll requests, at most: fewer after a poll whose rows exceeded the memory limit.
    row_limit: usize,
    polls: u64,
    /// Whether the last poll skipped rows that can be sent after the next delivery report.
    skipped_rows: bool,
    /// Whether the last poll ended at its limit, so that the next poll may find more rows at once.
    has_more: bool,
}

impl<'a> OutboxSender<'a> {
    pub fn new(
        service: &'static str,
        producer: Producer,
        registry: &'a SchemaRegistryClient,
    ) -> OutboxSender<'a> {
        OutboxSender {
            source: format!("/{service}"),
            producer,
            registry,
            in_flight: InFlightRecords::new(),
            backoff: Backoff::default(),
            lag: OutboxLag::new(),
            row_limit: BATCH_ROWS_MAX,
            polls: 0,
            skipped_rows: false,
            has_more: false,
        }
    }

    /// Polls the outbox once: deletes acknowledged rows if it is time to, reads up to `limit` rows that may be
    /// sent, and sends them. Returns how many it sent.
    pub async fn send_batch(
        &mut self,
        db: &mut PgConnection,
        limit: usize,
    ) -> anyhow::Result<usize> {
        while let Some(report) = self.producer.try_next_report() {
            self.on_delivery(report)?;
        }
        let (rows, is_truncated) = self.fetch_rows(db, limit).await?;
        crash_point!("relay.taken", !rows.is_empty());
        let (taken, mut sent, mut waiting) = (rows.len(), 0, HashSet::new());
        let is_alone = taken == 1;
        for row in rows {
            crash_point!("relay.sending", sent > 0);
            // An earlier row of this batch may block it.
            let held = self.backoff.contains_topic(&row.topic)
                || self.in_flight.contains_key(&row.key)
                || waiting.contains(&row.key);
            let client = self.in_flight.client_for(&row.topic, is_alone).filter(|_| !held);
            let is_sent = match client {
                Some(client) => self.send(db, &row, client).await?,
                None => false,
            };
            if is_sent {
                sent += 1;
            } else {
                waiting.insert(row.key);
            }
        }
        crash_point!("relay.sent", sent > 0);
        self.skipped_rows |= !waiting.is_empty();
        // While topics back off a poll is expensive, so the next one at once must be worth it.
        self.has_more = is_truncated && sent > 0 && (sent == taken || !self.has_backoff());
        Ok(sent)
    }

    /// Whether to poll again at once, because the last poll reached its limit. Its rows may all be of one key,
    /// of which it sent the first; the next poll skips keys in flight and finds the rows behind them.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// Whether to poll now, after a delivery report. Acknowledged rows alone are no reason: they can wait for the
    /// next poll, and a separate poll would cost as much as any other.
    pub fn should_poll(&self) -> bool {
        self.skipped_rows || self.in_flight.acknowledged().len() >= BATCH_ROWS_MAX
    }

    pub fn has_backoff(&self) -> bool {
        self.backoff.waiting_topics().next().is_some()
            || self.in_flight.stalled_topics().next().is_some()
    }

    /// Deletes the acknowledged rows and reads the next ones, in one statement. Returns them, and whether the table
    /// may have more.
    async fn fetch_rows(
        &mut self,
        db: &mut PgConnection,
        limit: usize,
    ) -> anyhow::Result<(Vec<OutboxRow>, bool)> {
        // Without room, rows can be sent after the next delivery report.
        self.skipped_rows = limit == 0;
        if limit == 0 && self.in_flight.acknowledged().is_empty() {
            return Ok((Vec::new(), false));
        }
        let limit = limit.min(self.row_limit);
        self.polls += 1;
        let low_watermark = &mut self.lag.low_watermark;
        let scan_from = if limit == 0 { low_watermark.get() } else { low_watermark.scan_from() };
        let now = Instant::now();
        self.backoff.release_topics(now);
        let topics = self.backoff.waiting_topics().chain(self.in_flight.stalled_topics());
        let topics = Vec::from_iter(topics);
        let keys = Vec::from_iter(self.in_flight.keys().chain(self.backoff.waiting_keys(now)));
        let deletes = self.in_flight.should_delete(limit);
        let statement = select_statement(deletes, !topics.is_empty());
        let query = sqlx::query_as(AssertSqlSafe(statement)).bind(self.in_flight.acknowledged());
        let query = query.bind(scan_from).bind(keys).bind(limit as i64);
        let query = if topics.is_empty() { query } else { query.bind(topics) };
        let read = db::with_timeout(OUTBOX_SCAN_TIMEOUT, read_rows(query.fetch(db))).await;
        let (rows, skipped) = read.context("the outbox could not be read")?;
        let is_truncated = skipped > 0 || (limit > 0 && rows.len() == limit);
        if limit > 0 {
            self.row_limit =
                if skipped > 0 { rows.len() } else { (self.row_limit * 2).min(BATCH_ROWS_MAX) };
        }
        if let Some(first) = rows.first() {
            self.lag.low_watermark.lower_to(first.position);
        }
        if deletes {
            crash_point!("relay.deleted");
            self.lag.low_watermark.record_deleted(self.in_flight.acknowledged());
            self.in_flight.on_deleted();
        }
        Ok((rows, is_truncated))
    }

    /// Hands a record to the producer; returns false if its topic backs off.
    async fn send(
        &mut self,
        db: &mut PgConnection,
        row: &OutboxRow,
        client: Client,
    ) -> anyhow::Result<bool> {
        let registered = resolve_schema_id(self.registry, db, row, &mut self.backoff).await?;
        let Some(registered) = registered else { return Ok(false) };
        let OutboxRow { position, topic, key, occurred_at, .. } = row;
        let flight = InFlight {
            position: *position,
            topic: topic.clone(),
            key: key.clone(),
            occurred_at: *occurred_at,
            sent_at: Instant::now(),
            poll: self.polls,
            span: send_span(row),
        };
        let sent = (flight.sent_at, flight.position);
        let record = frame(registered.id, &row.body);
        let headers = record_headers(&self.source, row, &registered.dataschema);
        match self.producer.send(client, row, &record, headers, flight) {
            Ok(()) => {
                self.in_flight.on_sent(topic, key, client, sent);
                Ok(true)
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => Ok(false),
            Err((error, flight)) => {
                self.check_producer()?;
                self.backoff.on_not_persisted(&flight.topic, &flight.key, &error);
                Ok(false)
            }
        }
    }

    pub fn on_delivery(&mut self, (flight, status): DeliveryReport) -> anyhow::Result<()> {
        // A new cluster may acknowledge a record to a producer of the old cluster. The next producer sends
        // that record again, maybe under the same producer id. If this row were deleted, another record would
        // be the first of its partition, and the broker would take it for a duplicate of this one.
        if self.producer.cluster_changed() {
            self.check_producer()?;
        }
        self.in_flight.on_delivery(&flight);
        // A later poll skipped all other rows of its key.
        self.skipped_rows |= flight.poll < self.polls;
        match status {
            DeliveryStatus::Persisted => {
                self.backoff.on_persisted(&flight.key);
                self.in_flight.on_persisted(&flight, self.lag.age(flight.occurred_at));
                crash_point!("relay.acknowledged");
            }
            // The next poll sends it again. If it was written after all, consumers drop the duplicate.
            DeliveryStatus::PossiblyPersisted => {
                flight.mark_span_as_failed();
                self.skipped_rows = true;
                counter!("relay_possibly_persisted_total").increment(1);
            }
            // It stays in the outbox; its key or its topic backs off.
            DeliveryStatus::NotPersisted(error) => {
                flight.mark_span_as_failed();
                refusals::report_kafka(&error, &flight.topic);
                self.check_producer()?;
                self.backoff.on_not_persisted(&flight.topic, &flight.key, &error);
            }
        }
        Ok(())
    }

    /// Fails if the producer must be replaced; the relay then restarts with a new one.
    pub fn check_producer(&self) -> anyhow::Result<()> {
        let because = match self.producer.fatal_reason() {
            Some(reason) => reason,
            None if self.in_flight.silent_for() > DELIVERY_SILENCE_MAX => {
                format!("no delivery report for {DELIVERY_SILENCE_MAX:?}")
            }
            None => return Ok(()),
        };
        counter!("relay_producers_replaced_total").increment(1);
        anyhow::bail!("the producer must be replaced: {because}")
    }
}
