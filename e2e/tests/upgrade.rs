//! A rolling upgrade and its rollback under load: two instances of each service, one at a time
//! replaced by a newer version, then again by the older one. No client may notice.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::mutants::worktree::Worktree;
use e2e::stack_description::{SERVICES, stack_description};
use e2e::workload::load;
use e2e::workload::options::Load;
use launcher::Stack;
use launcher::directories::programs_directory;

use crate::fixture::*;

/// Stopping and starting an instance takes some seconds, and there are twelve of these steps. The
/// load covers all of them.
const LOAD_DURATION: Duration = Duration::from_secs(600);

/// Gives the newer version newer databases as well: the orders and the inbox of the chassis have an additional
/// column each, which both versions of a service find.
pub fn add_newer_migrations(scratch: &Worktree) -> Result<()> {
    let migration = "alter table orders add column channel text not null default 'web';\n";
    scratch.add_file("services/order/migrations/9000_orders_have_a_channel.sql", migration)?;
    add_newer_chassis_migration(scratch)
}

/// The newer chassis writes the new column: a replacement of text in a file.
pub const NEWER_INBOX: (&str, &str, &str) = (
    "shared/messaging/src/inbox.rs",
    "attempts, tick)\n         select unnest($1::uuid[]), unnest($2::text[]), $3, \",",
    "attempts, handled_by, tick)\n         select unnest($1::uuid[]), unnest($2::text[]), $3, 'the newer version', \",",
);

/// The migration of the newer chassis alone.
pub fn add_newer_chassis_migration(scratch: &Worktree) -> Result<()> {
    let migration = "alter table chassis.inbox add column handled_by text not null default '';\n";
    scratch.add_file("shared/messaging/migrations/9000_inbox_entries_have_a_handler.sql", migration)
}

/// Runs the newer migrations of every service, while the older version serves.
pub async fn migrate_all(stack: &Stack, newer: &Path) -> Result<()> {
    for service in SERVICES {
        stack.migrate_with(newer, service).await?;
    }
    Ok(())
}

/// Contracts and migrations first, with the older version running; then one instance after the
/// other to the newer version; then back, on the newer schema.
pub async fn upgrade_and_roll_back(newer: &Path) -> Result<()> {
    let stack = Stack::ephemeral(&stack_description())?;
    without_unexpected_exits(&stack, roll_under_load(&stack, newer)).await
}

async fn roll_under_load(stack: &Stack, newer: &Path) -> Result<()> {
    stack.set_instances(2).await?;
    let client = start_and_seed(stack).await?;
    let load = Load { rate: 40, duration: LOAD_DURATION, ..Load::default() };
    let older = programs_directory()?;
    let roll = async || -> Result<()> {
        stack.apply_contracts(newer).await?;
        migrate_all(stack, newer).await?;
        for version in [newer, &older] {
            for name in instances(stack)? {
                stack.stop(&name).await?;
                stack.set_programs(&name, version)?;
                stack.start(&name).await?;
            }
        }
        Ok(())
    };
    let began = tokio::time::Instant::now();
    let (summary, took) = load::run_while(&client, &load, async {
        roll().await?;
        Ok(began.elapsed())
    })
    .await?;
    let summary_text = summary.lines().join("\n");
    ensure!(took < LOAD_DURATION, "it took {took:?}: not all of it was under load\n{summary_text}");
    ensure!(summary.holds() && summary.answered_all(), "a client noticed:\n{summary_text}");
    let verdict = verify_within(&client, Duration::from_secs(60)).await?;
    ensure!(verdict.dead_letters_waiting == 0, "{}", verdict.lines().join("\n"));
    for name in instances(stack)? {
        let log = std::fs::read_to_string(stack.log_file(&name)?)?;
        ensure!(!log.contains("panicked"), "{name} panicked");
    }
    Ok(())
}

/// Every instance, in the order of the upgrade: the services that respond to orders come before the
/// order service, and the instances of a service one after the other.
fn instances(stack: &Stack) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for service in SERVICES.iter().rev() {
        all.extend(stack.instances_of(service)?);
    }
    Ok(all)
}
