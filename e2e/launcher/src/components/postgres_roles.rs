//! The roles and databases in the cluster of a service. Each step may be repeated, and other launchers may do the same.

use anyhow::{Context, Result};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use crate::secrets::scram::scram_verifier;
use crate::secrets::{SUPERUSER, connector_role, database_secret, owner_role};
use crate::state::StackState;

pub async fn connect(url: &str) -> Result<PgConnection> {
    let options: PgConnectOptions = url.parse()?;
    Ok(options.disable_statement_logging().connect().await?)
}

/// A connection to the maintenance database of the cluster of a service, as its superuser.
pub async fn connect_as_superuser(state: &StackState, service: &str) -> Result<PgConnection> {
    connect(&state.database_url(service, SUPERUSER, "postgres")?).await
}

/// Sessions of the role that serves, and the disk for each of its large sorts: the rest of the 200 sessions is for
/// migrations, connectors and operators.
const SERVING_CONNECTIONS_MAX: u32 = 190;
const SERVING_TEMP_FILES_MAX: &str = "1GB";

/// Takes the functions of large objects from all but the superuser. No table's rights reach a large object.
const REVOKE_LARGE_OBJECTS: &str = "
    do $$ declare large_object regprocedure; begin
        for large_object in
            select oid from pg_proc
            where pronamespace = 'pg_catalog'::regnamespace and proname ~ '^lo(_|read$|write$)'
        loop execute format('revoke execute on function %s from public', large_object); end loop;
    end $$";

/// Waits until no other launcher changes the roles of the cluster. The lock ends with the session.
pub async fn lock_roles(db: &mut PgConnection) -> Result<()> {
    sqlx::query("select pg_advisory_lock(hashtext('roles'))").execute(db).await?;
    Ok(())
}

/// Creates a database in the cluster of a service, with two roles: the one that migrates it is its owner, and grants the
/// one with the name of the database what it needs. A service's own database has its name.
pub async fn create_roles(state: &StackState, service: &str, name: &str) -> Result<()> {
    let mut db = connect_as_superuser(state, service).await?;
    lock_roles(&mut db).await?;
    let there: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(name)
            .fetch_one(&mut db)
            .await?;
    if !there {
        create_database(state, &mut db, service, name).await?;
    }
    limit_serving_role(state, service, name).await
}

async fn create_database(
    state: &StackState,
    db: &mut PgConnection,
    service: &str,
    name: &str,
) -> Result<()> {
    let secrets = state.secrets()?;
    let create_role = |role: &str| -> Result<String> {
        let password = secrets.password(&database_secret(service, role))?;
        let verifier = scram_verifier(&password)?;
        Ok(format!(r#"create role "{role}" login password '{verifier}'"#))
    };
    let statements = [
        create_role(&owner_role(name))?,
        create_role(name)?,
        "create extension if not exists pg_stat_statements".to_string(),
        "revoke connect on database postgres, template1 from public".to_string(),
        format!(r#"create database "{name}" owner "{}""#, owner_role(name)),
    ];
    for statement in statements {
        let made = sqlx::query(AssertSqlSafe(statement)).execute(&mut *db).await;
        // An earlier launcher was interrupted.
        let there = |error: &sqlx::Error| {
            let code = error.as_database_error().and_then(|error| error.code());
            matches!(code.as_deref(), Some("42710" | "42P04" | "23505"))
        };
        if let Err(error) = made
            && !there(&error)
        {
            return Err(error).with_context(|| format!("cannot prepare the database {name}"));
        }
    }
    Ok(())
}

/// What only a superuser can take from the role that serves. The rest follows from the migrations.
async fn limit_serving_role(state: &StackState, service: &str, name: &str) -> Result<()> {
    let mut db = connect(&state.database_url(service, SUPERUSER, name)?).await?;
    let limits = format!(
        r#"alter role "{name}" connection limit {SERVING_CONNECTIONS_MAX};
           alter role "{name}" set temp_file_limit = '{SERVING_TEMP_FILES_MAX}';
           {REVOKE_LARGE_OBJECTS}"#
    );
    sqlx::raw_sql(AssertSqlSafe(limits)).execute(&mut db).await?;
    Ok(db.close().await?)
}

/// Creates the role with which a connector reads the log of a database. It may read no table: the migrations grant it
/// those that it captures.
pub async fn create_connector_role(state: &StackState, service: &str) -> Result<()> {
    let mut db = connect_as_superuser(state, service).await?;
    let role = connector_role(service);
    let password = state.secrets()?.password(&database_secret(service, &role))?;
    let verifier = scram_verifier(&password)?;
    // Another launcher may do the same.
    let create = format!(
        r#"do $$ begin
               create role "{role}" login replication password '{verifier}';
           exception when duplicate_object or unique_violation then null; end $$"#
    );
    sqlx::query(AssertSqlSafe(create)).execute(&mut db).await?;
    Ok(db.close().await?)
}

/// Whether a running database writes a log from which a connector can read rows.
pub async fn has_logical_log(state: &StackState, service: &str) -> Result<bool> {
    let mut db = connect_as_superuser(state, service).await?;
    let level: String = sqlx::query_scalar("show wal_level").fetch_one(&mut db).await?;
    db.close().await?;
    Ok(level == "logical")
}
