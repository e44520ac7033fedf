//! Quiescence: no message is pending. The events that a connector carries wait in no outbox, and are in Kafka when the
//! connector's slot has confirmed the log of the database so far.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Result;
use sqlx::PgPool;

use crate::sources::Sources;

const POLL_INTERVAL: Duration = Duration::from_millis(250);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Where the log of a database ends, for each service whose outbox a connector carries.
type LogEnds = BTreeMap<&'static str, i64>;

impl Sources {
    /// The services whose events a connector carries, or did so once.
    pub async fn carried_by_connector(&self) -> Result<BTreeSet<&'static str>> {
        let mut services = BTreeSet::new();
        for (service, db) in self.databases() {
            if was_ever_carried(db).await? {
                services.insert(*service);
            }
        }
        Ok(services)
    }

    /// Waits until nothing is pending: neither a message nor what `others` returns, and each connector has carried what
    /// there was then. Returns what is pending after the timeout, each as a text for users.
    pub async fn wait_for_quiescence(
        &self,
        timeout: Duration,
        others: impl AsyncFn() -> Result<Vec<String>>,
    ) -> Result<Vec<String>> {
        let began = Instant::now();
        let mut reported_at = began;
        // What a connector carries when nothing else is pending.
        let mut captured: Option<LogEnds> = None;
        loop {
            let mut pending = others().await?;
            pending.extend(self.pending_messages().await?);
            if !pending.is_empty() {
                captured = None;
            } else if let Some(ends) = &captured {
                pending = self.undelivered(ends).await?;
            } else {
                let ends = self.log_ends().await?;
                pending = self.undelivered(&ends).await?;
                captured = Some(ends);
            }
            if pending.is_empty() || began.elapsed() > timeout {
                return Ok(pending);
            }
            if reported_at.elapsed() > PROGRESS_INTERVAL {
                reported_at = Instant::now();
                eprintln!("waiting for quiescence: {} …", pending.join(", "));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Where the logs end now.
    async fn log_ends(&self) -> Result<LogEnds> {
        let mut ends = LogEnds::new();
        for (service, db) in self.databases() {
            let end: Option<i64> = sqlx::query_scalar(
                "select (pg_current_wal_lsn() - '0/0'::pg_lsn)::bigint from pg_trigger
                 where tgrelid = 'chassis.outbox'::regclass and tgname = 'capture_event' and tgenabled <> 'D'",
            )
            .fetch_optional(db)
            .await?;
            ends.extend(end.map(|end| (*service, end)));
        }
        Ok(ends)
    }

    /// The services whose connector has not come so far yet, each as a text for users.
    async fn undelivered(&self, ends: &LogEnds) -> Result<Vec<String>> {
        let mut waiting = Vec::new();
        for (service, db) in self.databases() {
            let Some(end) = ends.get(service) else { continue };
            let confirmed: Option<i64> = sqlx::query_scalar(
                "select (confirmed_flush_lsn - '0/0'::pg_lsn)::bigint from pg_replication_slots where slot_name = $1",
            )
            .bind(format!("{service}_outbox"))
            .fetch_optional(db)
            .await?;
            if confirmed.is_none_or(|confirmed| confirmed <= *end) {
                waiting.push(format!(
                    "the connector of {service} has not confirmed the log up to the end"
                ));
            }
        }
        Ok(waiting)
    }
}

/// Whether a service was ever started with `RELAY=cdc`: its slot may be gone since then.
pub(crate) async fn was_ever_carried(db: &PgPool) -> Result<bool> {
    let stored = "select exists (select from chassis.outbox_schema_ids)";
    Ok(sqlx::query_scalar(stored).fetch_one(db).await?)
}
