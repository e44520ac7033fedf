//! The pool, and the schema that a service's own database must have.
//!
//! `migrate` changes it, as the role that owns it. `serve` only looks: it waits until each of
//! its own migrations was applied, and takes any further ones, so that an older version can run beside a
//! newer schema, and never the other way round.

use std::time::Duration;

use anyhow::Context;
use sqlx::migrate::Migrator;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, Row};
use tokio::time::{Instant, sleep};

use crate::config::{Config, Secret, address};
use crate::{crash, db};

const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(3);
const RELEASED_WITHIN: Duration = Duration::from_secs(2);
/// A connection keeps some settings for its life: one that was made while the database was read-only stays
/// so afterwards.
const LIVES_FOR: Duration = Duration::from_secs(5 * 60);
const MIGRATION_WAIT: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);

/// How long one question to the database may take.
const ASKED_WITHIN: Duration = Duration::from_secs(8);
const LOG_EVERY: Duration = Duration::from_secs(30);

/// How long a migration waits for a lock, and how long it then lets others pass.
const LOCK_WAIT: &str = "2s";
const LOCK_PAUSE: Duration = Duration::from_secs(1);

/// The pool of the serving role. It connects when first used, so that a service starts without its
/// database.
pub fn connect(service: &str, config: &Config) -> anyhow::Result<PgPool> {
    // No statement, lock or forgotten transaction may hold others up for ever, and a backend whose
    // client vanished must let go of its locks: Linux alone would wait two hours.
    let options = options(service, &config.database_url)?.options([
        ("statement_timeout", "5s"),
        ("lock_timeout", "2s"),
        ("idle_in_transaction_session_timeout", "10s"),
        ("tcp_keepalives_idle", "10"),
        ("tcp_keepalives_interval", "5"),
        ("tcp_keepalives_count", "3"),
        // Also where it vanished with an answer on its way, when no keepalive is sent.
        ("tcp_user_timeout", "10000"),
    ]);
    Ok(PgPoolOptions::new()
        .max_connections(config.database_pool_size)
        .acquire_timeout(ACQUIRE_TIMEOUT)
        .max_lifetime(LIVES_FOR)
        // The pool itself asks each returned connection whether it lives, and waits for the answer
        // for ever: one whose other end vanished without a word would keep its place for as long as
        // TCP tries, a quarter of an hour.
        .after_release(|connection, _| {
            Box::pin(async { db::in_time(RELEASED_WITHIN, is_at_rest(connection)).await })
        })
        .connect_lazy_with(options))
}

/// Whether no transaction is open on a connection. Whoever gives up waiting for the answer to `begin`
/// returns one on which it may be: the pool believes that nothing was begun, and the next would work
/// in a transaction that is as old as that.
async fn is_at_rest(connection: &mut PgConnection) -> sqlx::Result<bool> {
    // As one message, which is a transaction of its own if there is none.
    let asked = sqlx::raw_sql("select transaction_timestamp() = statement_timestamp()");
    asked.fetch_one(connection).await?.try_get(0)
}

/// Brings the schema up to date and lets the serving role work in it. Safe to run twice, and from
/// two places at once.
///
/// # Errors
/// If no database is there within 60 s, if a migration fails or one that was applied was edited, or
/// if the serving role can't be given its rights. A table that is not free within 2 s is no error:
/// others are let pass for 1 s, then it is tried again, for ever if need be.
pub async fn migrate(service: &str, config: &Config, mut migrator: Migrator) -> anyhow::Result<()> {
    // An older version may be deployed again after a newer one; its migrations are all there.
    migrator.set_ignore_missing(true);
    while let Err(error) = try_to_migrate(service, config, &migrator).await {
        if !waited_in_vain(&error) {
            return Err(error);
        }
        tracing::warn!("the migrations are tried again: {error:#}");
        sleep(LOCK_PAUSE).await;
    }
    Ok(())
}

async fn try_to_migrate(service: &str, config: &Config, migrator: &Migrator) -> anyhow::Result<()> {
    let owner = config.migration_database_url.as_ref().unwrap_or(&config.database_url);
    // Whoever waits for a table holds up all who come after, as long as a backup reads it: better to give
    // way to them and to try again. It may well be another migration that is waited for.
    let owner = options(service, owner)?.options([("lock_timeout", LOCK_WAIT)]);
    let mut db = connect_within(&owner, MIGRATION_WAIT).await?;
    migrator.run(&mut db).await.context("the migrations failed")?;
    crash::point!("schema.migrated");
    let server = options(service, &config.database_url)?;
    if server.get_username() != owner.get_username() {
        grant(&mut db, server.get_username()).await.context("the grants failed")?;
    }
    crash::point!("schema.granted");
    let version = newest(migrator);
    tracing::info!(version, "the schema is up to date");
    Ok(db.close().await?)
}

/// Whether all that failed was to get a lock in time.
fn waited_in_vain(error: &anyhow::Error) -> bool {
    let mut causes = error.chain().filter_map(|cause| cause.downcast_ref::<sqlx::Error>());
    causes.any(|error| {
        error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("55P03"))
    })
}

/// Waits, for ever if need be, until every embedded migration was applied. That the newest was does not
/// tell: where two branches met, a lower number may have come after a higher one was deployed.
pub async fn wait_until_current(db: &PgPool, migrator: &Migrator) {
    let needed: Vec<i64> = migrator.iter().map(|migration| migration.version).collect();
    let mut logged: Option<(String, Instant)> = None;
    loop {
        let asked = sqlx::query_scalar(
            "select min(version) from unnest($1::bigint[]) as needed (version)
             where version not in (select version from _sqlx_migrations where success)",
        );
        let lacking: Result<Option<i64>, sqlx::Error> =
            db::in_time(ASKED_WITHIN, asked.bind(&needed).fetch_one(db)).await;
        let why = match lacking {
            Ok(None) => return,
            Ok(Some(version)) => format!("migration {version} was not applied to it"),
            Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some("42P01") => {
                "it was never migrated".to_owned()
            }
            Err(error) => error.to_string(),
        };
        let is_news =
            logged.as_ref().is_none_or(|(last, at)| *last != why || at.elapsed() > LOG_EVERY);
        if is_news {
            tracing::warn!("waiting for the database: {why}");
            logged = Some((why, Instant::now()));
        }
        sleep(RETRY).await;
    }
}

fn newest(migrator: &Migrator) -> i64 {
    migrator.iter().map(|migration| migration.version).max().unwrap_or(0)
}

async fn connect_within(
    options: &PgConnectOptions,
    bound: Duration,
) -> anyhow::Result<PgConnection> {
    let deadline = Instant::now() + bound;
    loop {
        match PgConnection::connect_with(options).await {
            Ok(db) => return Ok(db),
            Err(error) if Instant::now() < deadline => {
                tracing::warn!(%error, "waiting for the database");
                sleep(RETRY).await;
            }
            Err(error) => return Err(error).context(format!("no database within {bound:?}")),
        }
    }
}

async fn grant(db: &mut PgConnection, role: &str) -> sqlx::Result<()> {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    let mut tx = db.begin().await?;
    // Two grants at once on one table fail with "tuple concurrently updated".
    sqlx::query("select pg_advisory_xact_lock(hashtext('grants'))").execute(&mut *tx).await?;
    let schema: String =
        sqlx::query_scalar("select quote_ident(current_schema())").fetch_one(&mut *tx).await?;
    for grant in [
        format!("grant usage on schema {schema} to {role}"),
        format!("grant select, insert, update, delete on all tables in schema {schema} to {role}"),
        // To draw numbers; and to set a sequence ahead that a failover left behind its table.
        format!("grant usage, update on all sequences in schema {schema} to {role}"),
        format!("revoke insert, update, delete on _sqlx_migrations from {role}"),
    ] {
        sqlx::query(AssertSqlSafe(grant)).execute(&mut *tx).await?;
    }
    tx.commit().await
}

fn options(service: &str, url: &Secret) -> anyhow::Result<PgConnectOptions> {
    let options = address::database(url.expose()).map_err(anyhow::Error::msg)?;
    Ok(options.application_name(service))
}

#[cfg(test)]
pub(crate) mod tests {
    use std::borrow::Cow;

    use sqlx::SqlSafeStr;
    use sqlx::migrate::{Migration, MigrationType};

    use super::*;

    pub(crate) use crate::testing::{config, fresh_database};

    pub(crate) fn migrations(upto: i64) -> Migrator {
        numbered(1..=upto)
    }

    fn numbered(versions: impl IntoIterator<Item = i64>) -> Migrator {
        let migration = |version| {
            let sql =
                AssertSqlSafe(format!("create table t{version} (id bigserial)")).into_sql_str();
            Migration::new(version, Cow::from("tables"), MigrationType::Simple, sql, false)
        };
        Migrator::with_migrations(versions.into_iter().map(migration).collect())
    }

    #[tokio::test]
    async fn migrate_lets_the_serving_role_work_in_every_table_and_change_none() {
        let (owner, server) = fresh_database().await;
        let config = config(owner, server);
        let (once, twice) = tokio::join!(
            migrate("till", &config, migrations(2)),
            migrate("till", &config, migrations(2))
        );
        once.and(twice).unwrap();
        let db = connect("till", &config).unwrap();
        for may in [
            "insert into t1 default values",
            "update t2 set id = 2",
            "delete from t1",
            "select id from t2",
        ] {
            sqlx::query(may).execute(&db).await.expect(may);
        }
        for may_not in ["drop table t1", "delete from _sqlx_migrations", "create table mine ()"] {
            let refused = sqlx::query(may_not).execute(&db).await.expect_err(may_not);
            assert!(
                refused.as_database_error().unwrap().code().is_some_and(|code| code == "42501")
            );
        }
        let name: String =
            sqlx::query_scalar("show application_name").fetch_one(&db).await.unwrap();
        assert_eq!(name, "till");
        let timeout: String =
            sqlx::query_scalar("show statement_timeout").fetch_one(&db).await.unwrap();
        assert_eq!(timeout, "5s");
    }

    #[tokio::test]
    async fn grants_that_meet_wait_for_one_another() {
        let (owner, server) = fresh_database().await;
        let config = config(owner.clone(), server.clone());
        migrate("till", &config, migrations(2)).await.unwrap();
        let owner = options("till", &owner).unwrap();
        let server = options("till", &server).unwrap();
        let grants = (0..8).map(async |_| {
            let mut db = PgConnection::connect_with(&owner).await?;
            grant(&mut db, server.get_username()).await
        });
        futures::future::try_join_all(grants).await.unwrap();
    }

    /// Who waits for a table holds up all who come after, for as long as a backup reads it.
    #[tokio::test(flavor = "multi_thread")]
    async fn a_migration_that_has_to_wait_for_a_table_lets_others_pass() {
        let (owner, server) = fresh_database().await;
        let config = config(owner.clone(), server);
        migrate("till", &config, migrations(1)).await.unwrap();
        let sql = AssertSqlSafe("alter table t1 add column more int".to_string()).into_sql_str();
        let alter = Migration::new(2, Cow::from("more"), MigrationType::Simple, sql, false);
        let mut all: Vec<Migration> = migrations(1).iter().cloned().collect();
        all.push(alter);
        let mut backup = PgConnection::connect(owner.expose()).await.unwrap();
        let reads = "begin; lock table t1 in access share mode";
        sqlx::raw_sql(reads).execute(&mut backup).await.unwrap();
        let db = connect("till", &config).unwrap();
        let others = async {
            sleep(Duration::from_secs(5)).await;
            let served = async {
                while sqlx::query("insert into t1 default values").execute(&db).await.is_err() {}
            };
            tokio::time::timeout(Duration::from_secs(10), served).await.expect("they pass");
            let column = "select count(*) from pg_attribute where attname = 'more'";
            let added: i64 = sqlx::query_scalar(column).fetch_one(&db).await.unwrap();
            assert_eq!(added, 0, "the table is still read");
            sqlx::raw_sql("rollback").execute(&mut backup).await.unwrap();
        };
        let (migrated, ()) =
            tokio::join!(migrate("till", &config, Migrator::with_migrations(all)), others);
        migrated.unwrap();
    }

    #[tokio::test]
    async fn serve_waits_for_all_its_migrations_and_a_newer_schema_is_fine() {
        let (owner, server) = fresh_database().await;
        let config = config(owner, server);
        let db = connect("till", &config).unwrap();
        let is_current = async |version, within| {
            let migrator = migrations(version);
            let looked = wait_until_current(&db, &migrator);
            tokio::time::timeout(Duration::from_secs(within), looked).await.is_ok()
        };
        assert!(!is_current(1, 2).await, "never migrated");
        migrate("till", &config, migrations(2)).await.unwrap();
        assert!(!is_current(3, 2).await, "older than needed");
        migrate("till", &config, numbered([1, 2, 4])).await.unwrap();
        assert!(!is_current(3, 2).await, "a higher one is not this one");
        assert!(is_current(2, 30).await);
        migrate("till", &config, numbered([1, 2, 3, 4])).await.unwrap();
        assert!(is_current(3, 30).await, "it was made good");
        assert!(is_current(1, 30).await, "newer than needed");
        migrate("till", &config, migrations(1)).await.expect("an older version is deployed again");
    }
}
