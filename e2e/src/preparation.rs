//! What has to be there before a member can start: a database cluster with its roles, a formatted
//! Kafka log, Java's class archives. Each is made under another name and then renamed, so that what
//! a crash broke off is never taken for the whole.

use std::fs;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use sqlx::AssertSqlSafe;

use crate::Stack;
use crate::member::READY_WITHIN;
use crate::parts::{self, Parts, create_open_directory, is_root};
use crate::process::{self, NOBODY, Process, Signal};
use crate::readiness::connect;
use crate::settings::{self, ClassArchive};
use crate::topology::{Layout, Member};

/// Makes the cluster if there is none, and takes away what a killed one left in the way.
pub async fn prepare_postgres(parts: &Parts, process: &Process) -> Result<()> {
    if is_root() {
        let closed = process.home.ancestors().find(|parent| {
            fs::metadata(parent)
                .is_ok_and(|found| found.mode() & 0o001 == 0 && found.uid() != NOBODY)
        });
        if let Some(closed) = closed {
            bail!(
                "PostgreSQL runs as `nobody`, who cannot enter {}: set HOLDFAST_STATE to a directory \
                 that all may enter",
                closed.display()
            );
        }
        chown(&process.home, Some(NOBODY), Some(NOBODY))?;
    }
    let cluster = process.home.join("data");
    if !cluster.exists() {
        // Made under another name: a cluster is there whole or not at all.
        let fresh = process.home.join("data.new");
        let _ = fs::remove_dir_all(&fresh);
        let from = process.log_length();
        let launch = settings::initdb(parts, &fresh);
        if !launch.run(&process.home, &process.log, READY_WITHIN).await? {
            bail!(
                "initdb failed; {} ends with:\n{}",
                process.log.display(),
                process.log_tail(from)
            );
        }
        fs::rename(&fresh, &cluster)?;
    }
    // No process of this cluster lives, or we would not be here; but its old pid may live on as
    // somebody else's, and PostgreSQL would then refuse to start.
    let _ = fs::remove_file(cluster.join("postmaster.pid"));
    Ok(())
}

/// A database named like its service, owned by the role that migrates it; the role that serves
/// is granted what it needs by the migration.
pub async fn make_roles(layout: &Layout, service: &str) -> Result<()> {
    let mut db = connect(&layout.database_url(service, "postgres", "postgres")?).await?;
    let there: bool =
        sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
            .bind(service)
            .fetch_one(&mut db)
            .await?;
    if there {
        return Ok(());
    }
    let statements = [
        format!(r#"create role "{service}_migrator" login"#),
        format!(r#"create role "{service}" login"#),
        "create extension if not exists pg_stat_statements".to_string(),
        format!(r#"create database "{service}" owner "{service}_migrator""#),
    ];
    for statement in statements {
        let made = sqlx::query(AssertSqlSafe(statement)).execute(&mut db).await;
        // Two launchers may be at it, or one was broken off between two of them.
        let there = |error: &sqlx::Error| {
            let code = error.as_database_error().and_then(|error| error.code());
            matches!(code.as_deref(), Some("42710" | "42P04" | "23505"))
        };
        if let Err(error) = made
            && !there(&error)
        {
            return Err(error).with_context(|| format!("cannot prepare the database of {service}"));
        }
    }
    Ok(())
}

pub fn use_if_there(archive: &Path) -> ClassArchive {
    if archive.exists() { ClassArchive::Use } else { ClassArchive::Without }
}

pub fn prepare_java(home: &Path) -> Result<()> {
    let _ = fs::remove_dir_all(home.join("tmp"));
    create_open_directory(&home.join("tmp"))?;
    Ok(())
}

/// Writes Kafka's settings anew, and formats its log directory if there is none.
pub async fn prepare_kafka(parts: &Parts, layout: &Layout, process: &Process) -> Result<()> {
    let home = &process.home;
    let logs = home.join("data");
    fs::write(home.join("log4j2.properties"), settings::kafka_logging())?;
    fs::write(home.join("server.properties"), settings::kafka_config(layout, &logs)?)?;
    if logs.exists() {
        return Ok(());
    }
    let fresh = home.join("data.new");
    let config = home.join("format.properties");
    let _ = fs::remove_dir_all(&fresh);
    fs::write(&config, settings::kafka_config(layout, &fresh)?)?;
    let from = process.log_length();
    let launch = settings::kafka_format(parts, home, &config, &settings::cluster_id());
    if !launch.run(home, &process.log, READY_WITHIN).await? {
        bail!(
            "Kafka could not format its log; {} ends with:\n{}",
            process.log.display(),
            process.log_tail(from)
        );
    }
    fs::rename(fresh, logs)?;
    Ok(())
}

/// Whether Kafka was started with other settings than it would be given now: a service that was
/// added needs a listener of its own.
pub fn kafka_runs_with_other_settings(layout: &Layout, process: &Process) -> Result<bool> {
    let now = settings::kafka_config(layout, &process.home.join("data"))?;
    let then = fs::read_to_string(process.home.join("server.properties")).unwrap_or_default();
    Ok(process.living().is_some() && now != then)
}

/// Runs Kafka and the registry once, so that Java writes down the classes they load. Only speed
/// is at stake: where it fails the stack starts without.
pub async fn make_class_archives(parts: &Parts) {
    let archives = ["kafka", "registry"].map(|name| {
        let options = settings::java_options(&format!("{}_JAVA_OPTS", name.to_uppercase()));
        (name, parts.class_archive(name, &options))
    });
    if archives.iter().all(|(_, archive)| archive.exists()) {
        return;
    }
    eprintln!("preparing Java's class archives (once) …");
    let made = async {
        let directory = archives[0].1.parent().context("an archive lies in a directory")?;
        create_open_directory(directory)?;
        let _lock = parts::lock(&directory.join("lock"), &|| ()).await?;
        let stack = Stack::ephemeral()?;
        try_join_all(
            archives.iter().map(|(name, archive)| make_class_archive(&stack, parts, name, archive)),
        )
        .await?;
        stack.clean().await
    };
    if let Err(error) = made.await {
        eprintln!("without class archives, starts take longer: {error:#}");
    }
}

async fn make_class_archive(
    stack: &Stack,
    parts: &Parts,
    name: &str,
    archive: &Path,
) -> Result<()> {
    if archive.exists() {
        return Ok(());
    }
    let member: Member = name.parse()?;
    let layout = stack.layout()?;
    let process = stack.process(&member);
    prepare_java(&process.home)?;
    let fresh = archive.with_extension("new");
    let launch = if member == Member::Kafka {
        prepare_kafka(parts, &layout, &process).await?;
        settings::kafka(parts, &process.home, ClassArchive::Make, &fresh)
    } else {
        let port = layout.ports.registry;
        settings::registry(parts, &process.home, port, ClassArchive::Make, &fresh)
    };
    let identity = process.spawn(&launch).await?;
    stack.ready(&member, identity, 0).await?;
    process::send(Signal::Term, &[identity])?;
    ensure!(identity.ended(READY_WITHIN).await, "{name} did not end");
    fs::rename(fresh, archive).with_context(|| format!("{name} wrote no archive"))
}
