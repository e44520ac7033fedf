//! The preparations before a component can start: a database cluster with its roles, a formatted
//! Kafka log, Java's temporary directory. Each is created under a temporary name and then renamed,
//! so that a crash never leaves an incomplete one.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use anyhow::{Context, Result, bail};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::artifacts::Artifacts;
use crate::directories::{create_public_directory, is_root};
use crate::kafka_config;
use crate::launch_config::{self, POSTGRES_CERTIFICATE, POSTGRES_RULES};
use crate::process::{NOBODY_ID, Process};
use crate::readiness::{READY_TIMEOUT, connect_database};
use crate::scram::scram_verifier;
use crate::secrets::{
    POSTGRES, SUPERUSER, connector_role, database_secret, owner_role, write_private,
};
use crate::stack_state::StackState;

/// Creates the cluster if there is none, and removes the lock file of a killed server.
pub async fn provision_postgres(
    artifacts: &Artifacts,
    stack_state: &StackState,
    process: &Process,
    service: &str,
) -> Result<()> {
    if is_root() {
        let closed = process.home.ancestors().find(|parent| {
            fs::metadata(parent)
                .is_ok_and(|found| found.mode() & 0o001 == 0 && found.uid() != NOBODY_ID)
        });
        if let Some(closed) = closed {
            bail!(
                "PostgreSQL runs as the user with id {NOBODY_ID}, which cannot enter {}: set HOLDFAST_STATE to \
                 a directory that every user may enter",
                closed.display()
            );
        }
        chown(&process.home, Some(NOBODY_ID), Some(NOBODY_ID))?;
    }
    let cluster = process.home.join("data");
    if !cluster.exists() {
        // A temporary name first, so that the cluster is either complete or missing.
        let fresh = process.home.join("data.new");
        let _ = fs::remove_dir_all(&fresh);
        let from = process.log_length();
        let password = process.home.join("password");
        let superuser = database_secret(service, SUPERUSER);
        write_for_postgres(&password, stack_state.secrets()?.password(&superuser)?.as_bytes())?;
        let launch = launch_config::initdb(artifacts, &fresh, &password);
        let succeeded = launch.run(&process.home, &process.log, READY_TIMEOUT).await;
        fs::remove_file(password)?;
        if !succeeded? {
            bail!(
                "initdb failed; {} ends with:\n{}",
                process.log.display(),
                process.log_tail(from)
            );
        }
        fs::rename(&fresh, &cluster)?;
    }
    // No process of this cluster lives at this point. Its old pid may belong to another program
    // now, and PostgreSQL would then refuse to start.
    let _ = fs::remove_file(cluster.join("postmaster.pid"));
    if stack_state.secure {
        let rules = launch_config::POSTGRES_TLS_RULES;
        write_postgres_certificate(stack_state, process)?;
        write_for_postgres(&process.home.join(POSTGRES_RULES), rules.as_bytes())?;
    }
    Ok(())
}

/// Gives a database server the certificate of all database servers.
pub fn write_postgres_certificate(stack_state: &StackState, process: &Process) -> Result<()> {
    let certificate = fs::read(stack_state.secrets()?.certificate(POSTGRES)?)?;
    write_for_postgres(&process.home.join(POSTGRES_CERTIFICATE), &certificate)
}

/// Writes a file that only the user of the database server may read.
fn write_for_postgres(file: &Path, content: &[u8]) -> Result<()> {
    write_private(file, content)?;
    if is_root() {
        chown(file, Some(NOBODY_ID), Some(NOBODY_ID))?;
    }
    Ok(())
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

/// Creates a database in the cluster of a service, with two roles: the one that migrates it is its owner, and grants the
/// one with the name of the database what it needs. A service's own database has its name.
pub async fn create_roles(stack_state: &StackState, service: &str, name: &str) -> Result<()> {
    let mut db =
        connect_database(&stack_state.database_url(service, SUPERUSER, "postgres")?).await?;
    // Another launcher may do the same; the lock ends with the session.
    sqlx::query("select pg_advisory_lock(hashtext('roles'))").execute(&mut db).await?;
    let there: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(name)
            .fetch_one(&mut db)
            .await?;
    if !there {
        create_database(stack_state, &mut db, service, name).await?;
    }
    limit_serving_role(stack_state, service, name).await
}

async fn create_database(
    stack_state: &StackState,
    db: &mut PgConnection,
    service: &str,
    name: &str,
) -> Result<()> {
    let secrets = stack_state.secrets()?;
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
async fn limit_serving_role(stack_state: &StackState, service: &str, name: &str) -> Result<()> {
    let mut db = connect_database(&stack_state.database_url(service, SUPERUSER, name)?).await?;
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
pub async fn create_connector_role(stack_state: &StackState, service: &str) -> Result<()> {
    let mut db =
        connect_database(&stack_state.database_url(service, SUPERUSER, "postgres")?).await?;
    let role = connector_role(service);
    let password = stack_state.secrets()?.password(&database_secret(service, &role))?;
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
pub async fn has_logical_log(stack_state: &StackState, service: &str) -> Result<bool> {
    let mut db =
        connect_database(&stack_state.database_url(service, SUPERUSER, "postgres")?).await?;
    let level: String = sqlx::query_scalar("show wal_level").fetch_one(&mut db).await?;
    db.close().await?;
    Ok(level == "logical")
}

pub fn provision_java(home: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(home.join("tmp"));
    create_public_directory(&home.join("tmp"))?;
    Ok(())
}

/// Writes Kafka's settings, and formats its log directory if it is missing.
pub async fn provision_kafka(
    artifacts: &Artifacts,
    stack_state: &StackState,
    process: &Process,
) -> Result<()> {
    let home = &process.home;
    let logs = home.join("data");
    fs::write(home.join("log4j2.properties"), kafka_config::kafka_log_config())?;
    fs::write(home.join("server.properties"), kafka_config::kafka_config(stack_state, &logs)?)?;
    if logs.exists() {
        return Ok(());
    }
    let fresh = home.join("data.new");
    let config = home.join("format.properties");
    let _ = fs::remove_dir_all(&fresh);
    fs::write(&config, kafka_config::kafka_config(stack_state, &fresh)?)?;
    let from = process.log_length();
    let launch =
        kafka_config::kafka_format(artifacts, home, &config, &kafka_config::new_cluster_id());
    if !launch.run(home, &process.log, READY_TIMEOUT).await? {
        bail!(
            "Kafka could not format its log; {} ends with:\n{}",
            process.log.display(),
            process.log_tail(from)
        );
    }
    fs::rename(fresh, logs)?;
    Ok(())
}

/// Whether the settings of the running Kafka differ from those it would get now: a new service
/// needs its own listener.
pub fn kafka_config_changed(stack_state: &StackState, process: &Process) -> Result<bool> {
    let now = kafka_config::kafka_config(stack_state, &process.home.join("data"))?;
    let then = fs::read_to_string(process.home.join("server.properties")).unwrap_or_default();
    Ok(process.running().is_some() && now != then)
}
