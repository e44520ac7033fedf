//! Moves the consumer of a service to an earlier or a later place, through its admin port.

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use ops_client::{InboxCount, RewindRequest};

use crate::client::operator::Operator;
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
pub async fn run(operator: &Operator, options: &RewindOptions) -> Result<()> {
    let RewindOptions { service, to, topic, partition, reason } = options.clone();
    let mut request = RewindRequest { reason, topic, partition, ..RewindRequest::default() };
    match to.parse() {
        Ok(offset) => request.to_offset = Some(offset),
        Err(_) => {
            let time = to.parse::<DateTime<Utc>>();
            let time = time.context("TO is a time, as in 2026-11-20T09:00:00Z, or an offset")?;
            request.to_time = Some(time);
        }
    }
    let rewind = operator.ask()?.rewind(&service, &request).await?;
    print_line(&format!(
        "{service} reads from {to} within seconds. Its log has a line for each partition."
    ));
    for InboxCount { topic, events } in rewind.inbox {
        let at_least = if events == rewind.counted_at_most { "at least " } else { "" };
        print_line(&format!(
            "  {topic}: {at_least}{events} events are in the inbox, so they have no second effect"
        ));
    }
    Ok(())
}
