//! A rolling upgrade and its rollback, under load: two instances of each service, and one at a time is
//! replaced by a newer version, then again by the older one. No client may notice.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::client::Client;
use e2e::load::{self, Load};
use e2e::scratch::Scratch;
use e2e::stack::programs;
use e2e::topology::SERVICES;
use e2e::{Stack, seed, verify};

use crate::stage::nobody_dies;

/// Stopping, starting and settling of an instance takes some seconds; there are twelve of them. All of
/// it is under load, which ends with it.
const LASTING: Duration = Duration::from_secs(600);

/// Makes the newer version's database newer too: the order service is served by one with a column
/// more, whichever version serves.
pub fn make_database_newer(scratch: &Scratch) -> Result<()> {
    let migration = "alter table orders add column channel text not null default 'web';\n";
    scratch.add("services/order/migrations/9000_orders_have_a_channel.sql", migration)
}

/// Contracts and migrations first, which the older version has to bear; then instance by instance to
/// the newer version; then back, on the newer schema.
pub async fn forward_and_back(newer: &Path) -> Result<()> {
    let stack = Stack::ephemeral()?;
    nobody_dies(&stack, rolled(&stack, newer)).await
}

async fn rolled(stack: &Stack, newer: &Path) -> Result<()> {
    stack.set_instances(2).await?;
    stack.up().await?;
    let client = Client::of(stack)?;
    seed::run(&client).await?;
    let load = Load { rate: 40, lasting: LASTING, ..Load::default() };
    let older = programs()?;
    let roll = async || -> Result<()> {
        stack.apply_contracts(newer).await?;
        stack.migrate(newer, "order").await?;
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
    let said = summary.lines().join("\n");
    ensure!(took < LASTING, "it took {took:?}: not all of it was under load\n{said}");
    ensure!(summary.holds() && summary.answered_all(), "a client noticed:\n{said}");
    let verdict =
        verify::run(&client, &verify::Options { within: Duration::from_secs(60) }).await?;
    ensure!(verdict.holds() && verdict.letters_waiting == 0, "{}", verdict.lines().join("\n"));
    for name in instances(stack)? {
        let log = std::fs::read_to_string(stack.log_file(&name)?)?;
        ensure!(!log.contains("panicked"), "{name} panicked");
    }
    Ok(())
}

/// Those who only answer before the one who asks, and of each service one after the other.
fn instances(stack: &Stack) -> Result<Vec<String>> {
    let mut all = Vec::new();
    for service in SERVICES.iter().rev() {
        all.extend(stack.instances_of(service)?);
    }
    Ok(all)
}
