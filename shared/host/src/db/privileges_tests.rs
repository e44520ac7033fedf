//! The privileges of the serving role on a database of its own: each forbidden statement is run, and refused.

use std::borrow::Cow;

use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool, SqlSafeStr};

use crate::config::Secret;
use crate::db::migrate::migrate;
use crate::db::migrate::tests::migrator;
use crate::db::pool::{connect, connect_options};
use crate::testing::{config, fresh_database};

/// Each table of the chassis: a column of it, and whether the serving role updates and deletes its rows.
const CHASSIS_TABLES: [(&str, &str, bool, bool); 21] = [
    ("calls", "tries", true, true),
    ("captured_answers", "key", false, true),
    ("captured_events", "key", false, true),
    ("clock_ticks", "recorded_at", false, true),
    ("consumer", "reason", true, false),
    ("consumer_positions", "next_offset", true, false),
    ("dead_letters", "reason", false, false),
    ("delivery", "drain_to", true, false),
    ("erasures", "actor", false, false),
    ("idempotency_keys", "body", false, true),
    ("inbox", "event_id", false, true),
    ("migrations", "version", false, false),
    ("operator_acts", "request", false, false),
    ("outbox", "key", false, true),
    ("outbox_schema_ids", "source", false, false),
    ("outbox_schemas", "schema", false, false),
    ("rewinds", "reason", false, false),
    ("scheduled", "due_at", true, true),
    ("schema_ids", "schema", false, false),
    ("unfinished_erasures", "person_id", false, false),
    ("write_offs", "amount", false, false),
];

/// Migrations with these statements, numbered from 1.
fn migrations(statements: &[&'static str]) -> Migrator {
    migrator((1..).zip(statements.iter().map(|statement| statement.into_sql_str())))
}

/// Whether a role may run a statement. Its effect is rolled back.
async fn may(db: &PgPool, statement: &str) -> bool {
    let mut tx = db.begin().await.unwrap();
    match sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut *tx).await {
        Ok(_) => true,
        Err(error) => {
            let code = error.as_database_error().and_then(|it| it.code().map(Cow::into_owned));
            assert_eq!(code.as_deref(), Some("42501"), "{statement}: {error}");
            false
        }
    }
}

/// What the serving role may do in a table: read, add, update, delete and truncate.
async fn privileges(db: &PgPool, table: &str) -> [bool; 5] {
    [
        may(db, &format!("select from {table}")).await,
        may(db, &format!("insert into {table} default values")).await,
        may(db, &format!("update {table} set id = id")).await,
        may(db, &format!("delete from {table}")).await,
        may(db, &format!("truncate {table}")).await,
    ]
}

/// A migrated database: the pools of its owner and of its serving role.
async fn migrated(statements: &[&'static str]) -> (Secret, PgPool, PgPool) {
    let (owner, server) = fresh_database().await;
    let mut config = config(owner.clone(), server);
    migrate("till", &config, migrations(statements)).await.unwrap();
    let db = connect("till", &config).unwrap();
    config.database_url = owner.clone();
    (owner, connect("till", &config).unwrap(), db)
}

#[tokio::test]
async fn the_serving_role_rewrites_no_evidence_of_the_chassis() {
    let (_, _, db) = migrated(&[]).await;
    let tables: Vec<String> = sqlx::query_scalar(
        "select relname::text from pg_class
         where relnamespace = 'chassis'::regnamespace and relkind = 'r' order by relname",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    assert!(tables.iter().eq(CHASSIS_TABLES.map(|(table, ..)| table).iter()), "{tables:?}");
    for (table, column, updates, deletes) in CHASSIS_TABLES {
        assert!(may(&db, &format!("select from chassis.{table}")).await, "{table}");
        let update = format!("update chassis.{table} set {column} = {column}");
        assert_eq!(may(&db, &update).await, updates, "{update}");
        assert_eq!(may(&db, &format!("delete from chassis.{table}")).await, deletes, "{table}");
        assert!(!may(&db, &format!("truncate chassis.{table} cascade")).await, "{table}");
        let adds = may(
            &db,
            &format!("insert into chassis.{table} select from (select) as no_row where false"),
        )
        .await;
        let is_read_only =
            ["delivery", "erasures", "migrations", "unfinished_erasures"].contains(&table);
        assert_eq!(adds, !is_read_only, "{table}");
    }
}

#[tokio::test]
async fn of_a_dead_letter_only_what_an_operator_decides_may_change_and_its_bytes_may_go() {
    let (_, _, db) = migrated(&[]).await;
    let columns: Vec<String> = sqlx::query_scalar(
        "select quote_ident(attname) from pg_attribute
         where attrelid = 'chassis.dead_letters'::regclass and attnum > 0",
    )
    .fetch_all(&db)
    .await
    .unwrap();
    let mut mutable = Vec::new();
    for column in columns {
        // A column that is generated refuses every value but its default, to every role.
        if may(&db, &format!("update chassis.dead_letters set {column} = default")).await {
            mutable.push(column);
        }
    }
    // Of headers and record a trigger allows one change only: none of a settled dead letter is left.
    mutable.sort();
    let expected = ["actor", "discard_reason", "headers", "record", "settled_at", "state"];
    assert_eq!(mutable, expected);
    assert!(may(&db, "select from chassis.dead_letters for update").await);
}

#[tokio::test]
async fn the_serving_role_cannot_widen_its_privileges_or_reach_another_database() {
    let (owner, as_owner, db) = migrated(&["create table notes (id bigserial)"]).await;
    let role = connect_options("till", &owner).unwrap().get_username().to_owned();
    as_owner.acquire().await.expect("the owner can log in");
    for statement in [
        format!("set role \"{role}\""),
        format!("alter table notes owner to \"{role}\""),
        "set role postgres".to_owned(),
        "set session authorization postgres".to_owned(),
        "alter table chassis.dead_letters disable trigger all".to_owned(),
        "alter table notes add column more int".to_owned(),
        "comment on table chassis.dead_letters is ''".to_owned(),
        "create function chassis.mine() returns int language sql return 1".to_owned(),
        "create function public.mine() returns int language sql return 1".to_owned(),
        "create trigger mine after insert on notes execute function pg_notify()".to_owned(),
        "create schema mine".to_owned(),
        "create temporary table mine (id int)".to_owned(),
        "create role mine".to_owned(),
        "drop table notes".to_owned(),
        "copy notes to program 'true'".to_owned(),
        "copy notes from '/etc/hostname'".to_owned(),
        "select pg_read_file('/etc/hostname')".to_owned(),
        "set session_replication_role = 'replica'".to_owned(),
    ] {
        assert!(!may(&db, &statement).await, "{statement}");
    }
    // Postgres warns and grants nothing where the role has no right to grant.
    let grants = "grant update on chassis.dead_letters to public; grant delete on notes to public";
    let _ = may(&db, grants).await;
    assert!(!may(&db, "update chassis.dead_letters set reason = ''").await);

    let (_, _, other) = migrated(&["create table notes (id bigserial)"]).await;
    let other_database = other.connect_options().get_database().unwrap().to_owned();
    let stranger = (*db.connect_options()).clone().database(&other_database);
    let mut stranger = PgConnection::connect_with(&stranger).await.unwrap();
    for table in ["notes", "chassis.outbox", "_sqlx_migrations"] {
        let read = AssertSqlSafe(format!("select from {table}"));
        let refused = sqlx::raw_sql(read).execute(&mut stranger).await.unwrap_err();
        let code = refused.as_database_error().and_then(|it| it.code()).map(Cow::into_owned);
        assert_eq!(code.as_deref(), Some("42501"), "{table}: {refused}");
    }
}

#[tokio::test]
async fn the_comment_of_a_table_decides_and_an_older_version_grants_no_more() {
    const OLDER: &str = "create table notes (id bigserial); create table deposits (id bigserial);
                         comment on table deposits is 'append-only'";
    const NEWER: &str =
        "create table queue (id bigserial); comment on table queue is 'deletable: when done';
                         create table \"Odd \"\"name\" (id bigserial);
                         comment on table \"Odd \"\"name\" is 'append-only: by a newer version';
                         create table log (id bigserial);
                         comment on table log is 'append-only, deletable: by age'";
    const UNDECLARED: [bool; 5] = [true, true, true, false, false];
    const EVERY_CHANGE: [bool; 5] = [true, true, true, true, false];
    const APPEND_ONLY: [bool; 5] = [true, true, false, false, false];
    const BY_AGE: [bool; 5] = [true, true, false, true, false];
    let (owner, server) = fresh_database().await;
    let config = config(owner.clone(), server);
    let db = connect("till", &config).unwrap();
    migrate("till", &config, migrations(&[OLDER])).await.unwrap();
    assert_eq!(privileges(&db, "notes").await, UNDECLARED);
    assert_eq!(privileges(&db, "deposits").await, APPEND_ONLY);
    for statements in [&[OLDER, NEWER][..], &[OLDER]] {
        migrate("till", &config, migrations(statements)).await.unwrap();
        assert_eq!(privileges(&db, "notes").await, UNDECLARED, "{statements:?}");
        assert_eq!(privileges(&db, "deposits").await, APPEND_ONLY, "{statements:?}");
        assert_eq!(privileges(&db, "\"Odd \"\"name\"").await, APPEND_ONLY, "{statements:?}");
        assert_eq!(privileges(&db, "log").await, BY_AGE, "{statements:?}");
        assert_eq!(privileges(&db, "queue").await, EVERY_CHANGE, "{statements:?}");
    }
    // A privilege that was granted by hand goes with the next migration, and a comment counts at once.
    let mut as_owner = PgConnection::connect(owner.expose()).await.unwrap();
    let role = connect_options("till", &config.database_url).unwrap().get_username().to_owned();
    let by_hand = format!(
        "grant update (id), truncate on deposits to \"{role}\";
         grant delete on deposits to \"{role}\";
         comment on table notes is 'append-only'; comment on table log is null;
         comment on table queue is 'not deletable'"
    );
    sqlx::raw_sql(AssertSqlSafe(by_hand)).execute(&mut as_owner).await.unwrap();
    assert_eq!(privileges(&db, "deposits").await, [true, true, true, true, true]);
    migrate("till", &config, migrations(&[OLDER, NEWER])).await.unwrap();
    assert_eq!(privileges(&db, "deposits").await, APPEND_ONLY);
    assert_eq!(privileges(&db, "notes").await, APPEND_ONLY);
    assert_eq!(privileges(&db, "log").await, UNDECLARED);
    assert_eq!(privileges(&db, "queue").await, UNDECLARED);
}
