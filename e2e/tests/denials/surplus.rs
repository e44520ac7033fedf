//! A rule that no topic declares, added by hand with Kafka's own tool.

use std::process::Command;

use anyhow::{Context, Result};
use launcher::Stack;
use launcher::directories::programs_directory;

const TOOL: &str = "org.apache.kafka.tools.AclCommand";

/// Gives a user the right of another one. The arguments are those that `contracts acls` prints.
pub async fn give_right_of(owner: &str, right: &str, user: &str, stack: &Stack) -> Result<()> {
    let printed = Command::new(programs_directory()?.join("contracts")).arg("acls").output()?;
    let printed = String::from_utf8(printed.stdout)?;
    let owned = format!("User:{owner} {right}");
    let line = printed.lines().find(|line| line.contains(&owned)).context("no such right")?;
    let line = line.replace(&format!("User:{owner} "), &format!("User:{user} "));
    let words: Vec<&str> = line.split_whitespace().map(|word| word.trim_matches('\'')).collect();
    stack.run_kafka_tool(TOOL, &words).await?;
    Ok(())
}
