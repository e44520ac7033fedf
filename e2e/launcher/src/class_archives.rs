//! Archives of the classes that Java loads for Kafka and the registry. They only make starts
//! faster.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;

use crate::artifacts::Artifacts;
use crate::directories::{create_public_directory, lock_file};
use crate::java::java_options;
use crate::kafka_config;
use crate::launch_config::{self, ClassArchiveMode};
use crate::process::{self, Signal};
use crate::provision::{provision_java, provision_kafka};
use crate::readiness::{READY_TIMEOUT, wait_until_ready};
use crate::stack::Stack;
use crate::topology::{Component, StackDescription};

pub fn class_archive_mode(archive: &Path) -> ClassArchiveMode {
    if archive.exists() { ClassArchiveMode::Use } else { ClassArchiveMode::Disabled }
}

/// Runs Kafka and the registry once, so that Java writes the classes they load into archives. If
/// that fails, the stack starts without archives.
pub async fn create_class_archives(description: &StackDescription, artifacts: &Artifacts) {
    let archives = ["kafka", "registry"].map(|name| {
        let options = java_options(&format!("{}_JAVA_OPTS", name.to_uppercase()));
        (name, artifacts.class_archive(name, &options))
    });
    if archives.iter().all(|(_, archive)| archive.exists()) {
        return;
    }
    eprintln!("preparing Java's class archives (once) …");
    let made = async {
        let directory = archives[0].1.parent().context("an archive lies in a directory")?;
        create_public_directory(directory)?;
        let _lock = lock_file(&directory.join("lock"), &|| ()).await?;
        let stack = Stack::ephemeral(description)?;
        try_join_all(
            archives
                .iter()
                .map(|(name, archive)| create_class_archive(&stack, artifacts, name, archive)),
        )
        .await?;
        stack.clean().await
    };
    if let Err(error) = made.await {
        eprintln!("starts take longer, because no class archives were made: {error:#}");
    }
}

async fn create_class_archive(
    stack: &Stack,
    artifacts: &Artifacts,
    name: &str,
    archive: &Path,
) -> Result<()> {
    if archive.exists() {
        return Ok(());
    }
    let component = stack.component(name)?;
    let stack_state = stack.state()?;
    let process = stack.process(&component);
    provision_java(&process.home)?;
    let fresh = archive.with_extension("new");
    let launch = if component == Component::Kafka {
        provision_kafka(artifacts, &stack_state, &process).await?;
        kafka_config::kafka(artifacts, &process.home, ClassArchiveMode::Create, &fresh)
    } else {
        let mode = ClassArchiveMode::Create;
        launch_config::registry(artifacts, &process.home, &stack_state, mode, &fresh)?
    };
    let identity = process.spawn(&launch).await?;
    wait_until_ready(&stack_state, &component, &process, (identity, 0), &|_| ()).await?;
    process::send_signal(Signal::TERM, &[identity])?;
    ensure!(identity.wait_for_exit(READY_TIMEOUT).await, "{name} did not end");
    fs::rename(fresh, archive).with_context(|| format!("{name} wrote no archive"))
}
