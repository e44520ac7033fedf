//! Dead letters on the command line: lists, shows, replays and discards them through the admin port
//! of a service. A dead letter keeps a record that a service could not handle until an operator
//! settles it. `by_hand.rs` has two ways to make one.

pub mod by_hand;
mod view;

use std::io::{IsTerminal, Write};

use anyhow::{Context, Result, bail, ensure};
use clap::Subcommand;
use ops_client::ServiceError;

use crate::admin::dead_letters::view::{describe_pause, list, show, show_impact};
use crate::client::operator::Operator;
use crate::console::printable;

#[derive(Clone, Debug, Subcommand)]
pub enum DeadLetterCommand {
    /// List the dead letters that wait for an operator
    DeadLetters { service: Option<String> },
    /// Show one dead letter: its reason, position and content, and the impact of discarding it
    DeadLetter { service: String, id: i64 },
    /// Replay a dead letter, or `all` that wait
    Replay { service: String, id: String },
    /// Discard a dead letter for good
    Discard(DiscardOptions),
    /// Pause a consumer, in every instance
    Pause {
        service: String,
        /// The reason, in your words
        #[arg(long, env)]
        reason: String,
    },
    /// Resume a paused consumer
    Resume { service: String },
}

#[derive(Clone, Debug, clap::Args)]
pub struct DiscardOptions {
    pub service: String,
    pub id: i64,
    /// The reason, in your words
    #[arg(long, env)]
    pub reason: String,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Also request the remedy, if there is one
    #[arg(long)]
    pub cancel: bool,
    /// Agree to the write-off
    #[arg(long)]
    pub write_off: bool,
}

/// Runs the command and writes its output to `out`. Returns whether the command had its effect.
pub async fn run(
    operator: &Operator,
    command: &DeadLetterCommand,
    out: &mut impl Write,
) -> Result<bool> {
    Ok(match command {
        DeadLetterCommand::DeadLetters { service } => {
            list(operator, service.as_deref(), out).await?
        }
        DeadLetterCommand::DeadLetter { service, id } => {
            show(service, &operator.ask()?.dead_letter(service, *id).await?, out)?;
            true
        }
        DeadLetterCommand::Replay { service, id } if id == "all" => {
            let replayed = operator.replay_all(service).await?;
            writeln!(
                out,
                "{} dead letters of {service} are replayed, {} are still unprocessable",
                replayed.replayed, replayed.still_unprocessable
            )?;
            replayed.still_unprocessable == 0
        }
        DeadLetterCommand::Replay { service, id } => {
            let id: i64 =
                id.parse().with_context(|| format!("`{id}` is neither a number nor all"))?;
            let settled = operator.ask()?.replay(service, id).await?;
            writeln!(out, "dead letter {id} of {service}: {}", printable(&settled.to_string()))?;
            true
        }
        DeadLetterCommand::Discard(options) => discard(operator, options, out).await?,
        DeadLetterCommand::Pause { service, reason } => {
            let paused = operator.ask()?.pause(service, reason).await?;
            writeln!(out, "{}", describe_pause(service, &paused))?;
            writeln!(
                out,
                "every instance pauses within a few seconds; to end it: make resume SERVICE={service}"
            )?;
            true
        }
        DeadLetterCommand::Resume { service } => {
            operator.ask()?.resume(service).await?;
            writeln!(out, "the consumer of {service} resumes within a few seconds")?;
            true
        }
    })
}

async fn discard(
    operator: &Operator,
    options: &DiscardOptions,
    out: &mut impl Write,
) -> Result<bool> {
    let DiscardOptions { service, id, reason, yes, mut cancel, mut write_off } = options.clone();
    let service = &*service;
    let dead_letter = operator.ask()?.dead_letter(service, id).await?;
    let summary = &dead_letter.summary;
    let Some(impact) = &dead_letter.discard_impact else {
        writeln!(out, "dead letter {id} of {service} is already {}", printable(&summary.state))?;
        return Ok(summary.state == "discarded");
    };
    let (position, why) = (summary.position(), &summary.reason);
    writeln!(out, "dead letter {id} of {service}, {}: {}", printable(&position), printable(why))?;
    show_impact(impact, "if discarded", out)?;
    let has_write_off = !impact.write_offs.is_empty();
    if !yes {
        ensure!(
            std::io::stdin().is_terminal(),
            "without a terminal for the questions, set YES=1 (and CANCEL=1 or WRITE_OFF=1 if you want that)"
        );
        let question = if has_write_off { "Discard it, and write this off" } else { "Discard it" };
        if !confirm(question, out)? {
            writeln!(out, "nothing was done")?;
            return Ok(false);
        }
        write_off |= has_write_off;
        if let Some(remedy) = &impact.remedy {
            let does = printable(&remedy.description);
            cancel |= confirm(&format!("Also request the remedy ({does})"), out)?;
        }
    }
    let settled = match operator.ask()?.discard(service, id, &reason, write_off).await {
        Err(ServiceError::Refused { kind, detail, .. }) if kind == "write-off-needed" => {
            bail!("{detail} Here: WRITE_OFF=1.")
        }
        settled => settled?,
    };
    writeln!(out, "dead letter {id} of {service}: {}", printable(&settled.to_string()))?;
    if let Some(remedy) = impact.remedy.as_ref().filter(|_| cancel) {
        operator.ask()?.take(remedy).await?;
        let accepted = format!("{} accepted {} {}", remedy.service, remedy.method, remedy.path);
        writeln!(out, "{}", printable(&accepted))?;
    }
    Ok(true)
}

fn confirm(question: &str, out: &mut impl Write) -> Result<bool> {
    write!(out, "{question}? [y/N] ")?;
    out.flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(["y", "yes"].contains(&answer.trim().to_lowercase().as_str()))
}
