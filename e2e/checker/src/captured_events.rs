//! The events that a connector carries: they wait in no outbox, and are in Kafka when the connector's slot has confirmed
//! the log of the database so far.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use sqlx::PgPool;

use crate::sources::Sources;

/// Where the log of a database ends, for each service whose outbox a connector carries.
pub type LogEnds = BTreeMap<&'static str, i64>;

impl Sources {
    /// The services whose events a connector carries, or did so once.
    ///
    /// # Errors
    /// If a database does not respond.
    pub async fn carried_by_connector(&self) -> Result<BTreeSet<&'static str>> {
        let mut services = BTreeSet::new();
        for (service, db) in self.databases() {
            if was_ever_carried(db).await? {
                services.insert(*service);
            }
        }
        Ok(services)
    }

    /// Where the logs end now.
    ///
    /// # Errors
    /// If a database does not respond.
    pub async fn log_ends(&self) -> Result<LogEnds> {
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
    ///
    /// # Errors
    /// If a database does not respond.
    pub async fn undelivered(&self, ends: &LogEnds) -> Result<Vec<String>> {
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
