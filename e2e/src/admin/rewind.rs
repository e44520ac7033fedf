//! Moves the consumer of a service to an earlier or a later place, through its admin port.

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use launcher::Stack;
use serde_json::{Value, json};

use crate::admin::dead_letters::client::{AdminClient, detail};
use crate::console::print_line;

/// Where to.
#[derive(Clone, Debug, clap::Args)]
pub struct RewindOptions {
    pub service: String,
    /// A time as in 2026-11-20T09:00:00Z, or an offset
    #[arg(long)]
    pub to: String,
    /// Only this topic
    #[arg(long)]
    pub topic: Option<String>,
    /// Only this partition
    #[arg(long)]
    pub partition: Option<i32>,
    #[arg(long)]
    pub reason: String,
}

/// Asks for the rewind, and prints what the inbox absorbs.
pub async fn run(stack: &Stack, options: &RewindOptions) -> Result<()> {
    let RewindOptions { service, to, topic, partition, reason } = options;
    let mut body = json!({ "reason": reason, "topic": topic, "partition": partition });
    match to.parse::<i64>() {
        Ok(offset) => body["to_offset"] = json!(offset),
        Err(_) => {
            let time: DateTime<Utc> =
                to.parse().context("TO is a time, as in 2026-11-20T09:00:00Z, or an offset")?;
            body["to_time"] = json!(time);
        }
    }
    let admin = AdminClient::connect(stack, service).await?;
    let answer = admin.post("/consumer/rewind", Some(&body)).await?;
    ensure!(answer.is_success(), "{}", detail(&answer));
    let answer: Value = serde_json::from_slice(&answer.body)?;
    print_line(&format!(
        "{service} reads from {to} within seconds. Its log has a line for each partition."
    ));
    for counted in answer["inbox"].as_array().into_iter().flatten() {
        let events = counted["events"].as_i64().unwrap_or_default();
        let at_least =
            if Some(events) == answer["counted_at_most"].as_i64() { "at least " } else { "" };
        print_line(&format!(
            "  {}: {at_least}{events} events are in the inbox, so they have no second effect",
            counted["topic"].as_str().unwrap_or_default()
        ));
    }
    Ok(())
}
