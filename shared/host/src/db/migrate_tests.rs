//! Migrations on a database of their own.

use std::borrow::Cow;

use sqlx::migrate::{Migration, MigrationType};
use sqlx::{SqlSafeStr, SqlStr};

use super::*;

use crate::db::pool::connect;
pub(crate) use crate::testing::{config, fresh_database};

pub(crate) fn migrations(upto: i64) -> Migrator {
    numbered(1..=upto)
}

fn numbered(versions: impl IntoIterator<Item = i64>) -> Migrator {
    let table = |version| {
        (version, AssertSqlSafe(format!("create table t{version} (id bigserial)")).into_sql_str())
    };
    migrator(versions.into_iter().map(table))
}

/// Migrations with these versions and statements.
pub(crate) fn migrator(statements: impl IntoIterator<Item = (i64, SqlStr)>) -> Migrator {
    let migration = |(version, sql)| {
        Migration::new(version, Cow::from("tables"), MigrationType::Simple, sql, false)
    };
    Migrator::with_migrations(statements.into_iter().map(migration).collect())
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
    for may in ["insert into t1 default values", "update t2 set id = 2", "select id from t2"] {
        sqlx::query(may).execute(&db).await.expect(may);
    }
    for may_not in [
        "drop table t1",
        "delete from t1",
        "delete from _sqlx_migrations",
        "delete from chassis.migrations",
        "create table mine ()",
        "create table chassis.mine ()",
        "create schema mine",
    ] {
        let refused = sqlx::query(may_not).execute(&db).await.expect_err(may_not);
        assert!(refused.as_database_error().unwrap().code().is_some_and(|code| code == "42501"));
    }
    let name: String = sqlx::query_scalar("show application_name").fetch_one(&db).await.unwrap();
    assert_eq!(name, "till");
    let timeout: String =
        sqlx::query_scalar("show statement_timeout").fetch_one(&db).await.unwrap();
    assert_eq!(timeout, "5s");
}

#[tokio::test]
async fn concurrent_grants_wait_for_one_another() {
    let (owner, server) = fresh_database().await;
    let config = config(owner.clone(), server.clone());
    migrate("till", &config, migrations(2)).await.unwrap();
    let owner = connect_options("till", &owner).unwrap();
    let server = connect_options("till", &server).unwrap();
    let grants = (0..8).map(async |_| {
        let mut db = PgConnection::connect_with(&owner).await?;
        grant_privileges(&mut db, server.get_username()).await
    });
    futures::future::try_join_all(grants).await.unwrap();
}

/// A migration that waits for a table would block all transactions behind it while a backup reads it.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_waits_for_a_table_lets_others_pass() {
    let (owner, server) = fresh_database().await;
    let config = config(owner.clone(), server);
    migrate("till", &config, migrations(1)).await.unwrap();
    let alter = "alter table t1 add column more int".into_sql_str();
    let all = migrations(1).iter().chain(migrator([(2, alter)]).iter()).cloned().collect();
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
async fn serve_waits_for_all_its_migrations_and_accepts_a_newer_schema() {
    let (owner, server) = fresh_database().await;
    let config = config(owner, server);
    let db = connect("till", &config).unwrap();
    let is_current = async |version, within| {
        let migrator = migrations(version);
        let waiting = wait_for_migrations(&db, &migrator);
        tokio::time::timeout(Duration::from_secs(within), waiting).await.is_ok()
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

#[tokio::test]
async fn tables_of_another_commit_are_refused_with_the_remedy() {
    let (owner, server) = fresh_database().await;
    let config = config(owner.clone(), server);
    migrate("till", &config, migrations(1)).await.unwrap();
    let mut db = PgConnection::connect(owner.expose()).await.unwrap();
    let edited = "update chassis.migrations set checksum = '\\x00' where version = 1";
    sqlx::query(edited).execute(&mut db).await.unwrap();
    let refusal = format!("{:#}", migrate("till", &config, migrations(1)).await.unwrap_err());
    assert!(refusal.contains("`make clean` or `docker compose down -v`"), "{refusal}");
}
