//! The tables that a service's own database must have: those of the chassis and those of the service.
//!
//! The tables of the chassis lie in a Postgres schema of their own. Their migrations are a part of this crate and
//! have a version table of their own, so a service numbers its migrations as it likes, and gets later tables of the
//! chassis with a later version of the crate.
//!
//! `migrate` changes the tables, as the role that owns them: first those of the chassis, then those of the service.
//! `serve` only checks them: it waits until each migration that it knows was applied, and accepts further ones, so
//! that an older version can run with newer tables, and never a newer version with older tables.

use std::time::Duration;

use anyhow::Context;
use messaging::crash_point;
use messaging::db::{self, CHASSIS_VERSIONS, DbErrorClass};
use messaging::telemetry::log_throttle::LogThrottle;
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::time::{Instant, sleep};

use crate::config::Config;
use crate::db::SERVICE_VERSIONS;
use crate::db::pool::connect_options;
use crate::db::privileges::{grant_capture, grant_privileges};

const MIGRATION_CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How long one query may take.
const QUERY_TIMEOUT: Duration = Duration::from_secs(8);

/// A statement that waits for a table blocks all transactions behind it. So it gives up after this time, pauses for
/// other transactions, and retries.
const LOCK_TIMEOUT: &str = "2s";
const LOCK_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Brings the tables of the chassis and of the service up to date and grants the serving role its privileges. Safe to
/// run twice, and from two places at once. `DATABASE_URL`'s role needs no right to change tables; the role of
/// `MIGRATION_DATABASE_URL` needs the right to create a schema in the database.
///
/// # Errors
/// If no database answers within 60 s, if a migration or a grant fails, or if an applied migration was edited. A
/// table that stays locked for 2 s is no error: the migration lets other transactions pass for 1 s and tries again,
/// without end.
pub async fn migrate(service: &str, config: &Config, mut migrator: Migrator) -> anyhow::Result<()> {
    // An older version may be deployed again after a newer one; its migrations are all there.
    migrator.set_ignore_missing(true);
    while let Err(error) = migrate_once(service, config, &migrator).await {
        if !is_caused_by(&error, &[DbErrorClass::LockTimeout]) {
            return Err(error);
        }
        tracing::warn!("the migrations failed and are retried: {error:#}");
        sleep(LOCK_RETRY_INTERVAL).await;
    }
    Ok(())
}

async fn migrate_once(service: &str, config: &Config, migrator: &Migrator) -> anyhow::Result<()> {
    // A migration may have to wait for a backup that reads its table, or for another migration.
    let owner = owner_options(service, config)?;
    let mut db = connect_with_retry(&owner).await?;
    let chassis = db::migrator();
    chassis.run(&mut db).await.map_err(explain).context("the migrations of the chassis failed")?;
    migrator.run(&mut db).await.map_err(explain).context("the migrations failed")?;
    crash_point!("schema.migrated");
    let server = connect_options(service, &config.database_url)?;
    if server.get_username() != owner.get_username() {
        grant_privileges(&mut db, server.get_username()).await.context("the grants failed")?;
    }
    if let Some(role) = &config.connector_role {
        grant_capture(&mut db, role).await.context("the grants of the connector failed")?;
    }
    crash_point!("schema.granted");
    let newest = |it: &Migrator| it.iter().map(|migration| migration.version).max().unwrap_or(0);
    let (version, chassis_version) = (newest(migrator), newest(&chassis));
    tracing::info!(version, chassis_version, "the tables are up to date");
    Ok(db.close().await?)
}

/// Adds the remedy to the error of a migration that differs from the applied one.
fn explain(error: MigrateError) -> anyhow::Error {
    match error {
        MigrateError::VersionMismatch(version) => anyhow::anyhow!(
            "migration {version} differs from the one that was applied: another commit of an unreleased \
             version made these tables; delete them with `make clean` or `docker compose down -v`"
        ),
        other => other.into(),
    }
}

/// Whether the cause is an error of the database of one of these classes.
pub(super) fn is_caused_by(error: &anyhow::Error, classes: &[DbErrorClass]) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<sqlx::Error>());
    causes.any(|error| classes.contains(&db::classify(error)))
}

/// The options of a connection of the role that owns the tables.
pub(super) fn owner_options(service: &str, config: &Config) -> anyhow::Result<PgConnectOptions> {
    let owner = config.migration_database_url.as_ref().unwrap_or(&config.database_url);
    Ok(connect_options(service, owner)?.options([("lock_timeout", LOCK_TIMEOUT)]))
}

/// Waits, for ever if necessary, until every embedded migration was applied.
pub async fn wait_for_migrations(db: &PgPool, migrator: &Migrator) {
    let chassis = db::migrator();
    let mut log_throttle = LogThrottle::default();
    loop {
        let lacking = async {
            let of_chassis = find_unapplied(db, CHASSIS_VERSIONS, &chassis).await?;
            let of_service = find_unapplied(db, SERVICE_VERSIONS, migrator).await?;
            let of_chassis = of_chassis.map(|version| format!("{version} of the chassis"));
            Ok(of_chassis.or(of_service.map(|version| version.to_string())))
        };
        let why = match db::with_timeout(QUERY_TIMEOUT, lacking).await {
            Ok(None) => return,
            Ok(Some(migration)) => format!("migration {migration} was not applied to it"),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => {
                "it was never migrated".to_owned()
            }
            Err(error) => error.to_string(),
        };
        if log_throttle.should_log("database", &why) {
            tracing::warn!("waiting for the database: {why}");
        }
        sleep(RETRY_INTERVAL).await;
    }
}

/// The lowest embedded migration that was not applied. To compare the newest is not enough: after a merge of two
/// branches, a lower number may be deployed after a higher one.
async fn find_unapplied(
    db: &PgPool,
    versions: &str,
    migrator: &Migrator,
) -> sqlx::Result<Option<i64>> {
    let needed: Vec<i64> = migrator.iter().map(|migration| migration.version).collect();
    let query = AssertSqlSafe(format!(
        "select min(version) from unnest($1::bigint[]) as needed (version)
         where version not in (select version from {versions} where success)"
    ));
    sqlx::query_scalar(query).bind(needed).fetch_one(db).await
}

pub(super) async fn connect_with_retry(options: &PgConnectOptions) -> anyhow::Result<PgConnection> {
    let deadline = Instant::now() + MIGRATION_CONNECT_TIMEOUT;
    loop {
        match PgConnection::connect_with(options).await {
            Err(error) if Instant::now() < deadline => {
                tracing::warn!(%error, "waiting for the database");
                sleep(RETRY_INTERVAL).await;
            }
            ended => {
                let failure = || format!("no database within {MIGRATION_CONNECT_TIMEOUT:?}");
                return ended.with_context(failure);
            }
        }
    }
}

#[cfg(test)]
#[path = "migrate_tests.rs"]
pub(crate) mod tests;
