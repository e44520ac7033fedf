//! Archives of the classes that Java loads for Kafka and the registry. They only make starts
//! faster.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use futures::future::try_join_all;

use crate::artifacts::Artifacts;
use crate::component::{Component, Context};
use crate::description::StackDescription;
use crate::directories::{create_public_directory, lock_file};
use crate::lifecycle::start::create_home;
use crate::processes::send_signal;
use crate::readiness::{READY_TIMEOUT, Readiness, wait_until_ready};
use crate::stack::Stack;

/// Runs each component that has such an archive once, so that Java writes the classes that it loads. If
/// that fails, the stack starts without archives.
pub async fn create_class_archives(
    description: &StackDescription,
    artifacts: &Artifacts,
) -> Result<()> {
    let mut missing = Vec::new();
    for component in description.infrastructure() {
        let Some(program) = component.class_archive else { continue };
        let archive = artifacts.class_archive(program)?;
        if !archive.exists() {
            missing.push((component, archive));
        }
    }
    let Some((_, first)) = missing.first() else { return Ok(()) };
    eprintln!("preparing Java's class archives (once) …");
    let directory = first.parent().context("an archive lies in a directory")?;
    let made = async {
        create_public_directory(directory)?;
        let _lock = lock_file(&directory.join("lock"), &|| ()).await?;
        // Another launcher may have made them.
        let missing = missing.iter().filter(|(_, archive)| !archive.exists());
        let stack = Stack::ephemeral(description)?;
        try_join_all(missing.map(async |(component, archive)| -> Result<()> {
            run_once(&stack, component).await?;
            let fresh = archive.with_extension("new");
            fs::rename(fresh, archive).with_context(|| format!("{component} wrote no archive"))
        }))
        .await?;
        stack.clean().await
    };
    if let Err(error) = made.await {
        eprintln!("starts take longer, because no class archives were made: {error:#}");
    }
    Ok(())
}

async fn run_once(stack: &Stack, component: &Component) -> Result<()> {
    let (state, process) = (stack.state()?, stack.process(component));
    create_home(component, &process.home)?;
    let context = Context {
        description: stack.description(),
        state: &state,
        process: &process,
        archives_classes: true,
    };
    let identity = process.spawn(&component.command(&context).await?).await?;
    let readiness = Readiness::new(&state)?;
    wait_until_ready(&readiness, component, &process, (identity, 0), &|_| ()).await?;
    send_signal(component.stop_signal, &[identity])?;
    ensure!(identity.wait_for_exit(READY_TIMEOUT).await, "{component} did not end");
    Ok(())
}
