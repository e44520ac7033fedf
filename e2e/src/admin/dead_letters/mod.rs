//! Dead letters on the command line: lists, shows, replays and discards them through the admin port
//! of a service. A dead letter keeps a record that a service could not handle until an operator
//! settles it. `by_hand.rs` has two ways to make one.

pub mod by_hand;
pub(super) mod client;
mod view;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use launcher::Stack;
use reqwest::Method;
use serde_json::{Value, json};

use crate::admin::dead_letters::by_hand::{produce_poison, run_sql};
use crate::admin::dead_letters::client::{AdminClient, detail};
use crate::admin::dead_letters::view::{describe_pause, list, position, show, show_impact, text};

#[derive(Clone, Debug, Subcommand)]
pub enum DeadLetterCommand {
    /// List the dead letters that wait for an operator
    DeadLetters { service: Option<String> },
    /// Show one dead letter: its reason, position and content, and the impact of discarding it
    DeadLetter { service: String, id: i64 },
    /// Replay a dead letter, or `all` that wait
    Replay { service: String, id: String },
    /// Discard a dead letter for good
    Discard {
        service: String,
        id: i64,
        /// The reason, in your words
        #[arg(long, env)]
        reason: String,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Also request the remedy, if there is one
        #[arg(long)]
        cancel: bool,
        /// Agree to the write-off
        #[arg(long)]
        write_off: bool,
    },
    /// Pause a consumer, in every instance
    Pause {
        service: String,
        /// The reason, in your words
        #[arg(long, env)]
        reason: String,
    },
    /// Resume a paused consumer
    Resume { service: String },
    /// Put a record that is not an event into orders.created
    Poison,
    /// Run a statement in a service's database, as its superuser
    Sql {
        service: String,
        #[arg(env = "SQL")]
        statement: String,
    },
}

/// Runs the command and writes its output to `out`. The exit code is that of success if the command
/// had its effect.
pub async fn run(
    stack: &Stack,
    command: &DeadLetterCommand,
    out: &mut impl Write,
) -> Result<ExitCode> {
    let done = match command {
        DeadLetterCommand::DeadLetters { service } => list(stack, service.as_deref(), out).await?,
        DeadLetterCommand::DeadLetter { service, id } => {
            let dead_letter = AdminClient::connect(stack, service).await?.dead_letter(*id).await?;
            show(service, &dead_letter, out)?;
            true
        }
        DeadLetterCommand::Replay { service, id } if id == "all" => {
            replay_all(stack, service, out).await?
        }
        DeadLetterCommand::Replay { service, id } => {
            let id: i64 =
                id.parse().with_context(|| format!("`{id}` is neither a number nor all"))?;
            replay(stack, service, id, out).await?
        }
        DeadLetterCommand::Discard { service, id, reason, yes, cancel, write_off } => {
            let consent = DiscardConsent { yes: *yes, cancel: *cancel, write_off: *write_off };
            discard(stack, service, *id, reason, consent, out).await?
        }
        DeadLetterCommand::Pause { service, reason } => {
            let admin = AdminClient::connect(stack, service).await?;
            let request = json!({ "reason": reason });
            let paused = admin.post("/consumer/pause", Some(&request)).await?;
            writeln!(out, "{}", describe_pause(service, &paused.accepted_json()?))?;
            writeln!(
                out,
                "every instance pauses within a few seconds; to end it: make resume SERVICE={service}"
            )?;
            true
        }
        DeadLetterCommand::Resume { service } => {
            let admin = AdminClient::connect(stack, service).await?;
            let _: Value = admin.post("/consumer/resume", None).await?.accepted_json()?;
            writeln!(out, "the consumer of {service} resumes within a few seconds")?;
            true
        }
        DeadLetterCommand::Poison => {
            produce_poison(stack, &events::orders::CREATED, out).await?;
            true
        }
        DeadLetterCommand::Sql { service, statement } => {
            run_sql(stack, service, statement, out).await?
        }
    };
    Ok(if done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn replay(stack: &Stack, service: &str, id: i64, out: &mut impl Write) -> Result<bool> {
    let admin = AdminClient::connect(stack, service).await?;
    let response = admin.post(&format!("/dead-letters/{id}/replay"), None).await?;
    if !response.is_success() {
        writeln!(out, "{}", detail(&response))?;
        return Ok(false);
    }
    let response: Value = response.json()?;
    let result = match &*text(&response["outcome"]) {
        "replayed" => "is replayed: its event was handled",
        "handled_before" => "is closed: its event was handled when it was delivered again",
        "discarded_before" => "is closed: its event was discarded in another dead letter",
        _ => "was replayed before; nothing was done",
    };
    writeln!(out, "dead letter {id} of {service} {result}")?;
    Ok(true)
}

async fn replay_all(stack: &Stack, service: &str, out: &mut impl Write) -> Result<bool> {
    let admin = AdminClient::connect(stack, service).await?;
    let (mut replayed, mut still_unprocessable, mut after) = (0, 0, json!(0));
    while !after.is_null() {
        let request = json!({ "after": after });
        let response = admin.post("/dead-letters/replay", Some(&request)).await?;
        if !response.is_success() {
            writeln!(out, "{}", detail(&response))?;
            return Ok(false);
        }
        let response: Value = response.json()?;
        replayed += response["replayed"].as_i64().unwrap_or(0);
        still_unprocessable += response["still_unprocessable"].as_i64().unwrap_or(0);
        after = response["next"].clone();
    }
    writeln!(
        out,
        "{replayed} dead letters of {service} are replayed, {still_unprocessable} are still unprocessable"
    )?;
    Ok(still_unprocessable == 0)
}

/// What the operator agreed to on the command line.
#[derive(Clone, Copy)]
struct DiscardConsent {
    yes: bool,
    cancel: bool,
    write_off: bool,
}

async fn discard(
    stack: &Stack,
    service: &str,
    id: i64,
    reason: &str,
    consent: DiscardConsent,
    out: &mut impl Write,
) -> Result<bool> {
    let admin = AdminClient::connect(stack, service).await?;
    let dead_letter = admin.dead_letter(id).await?;
    if dead_letter["state"] != "waiting" {
        writeln!(out, "dead letter {id} of {service} is already {}", text(&dead_letter["state"]))?;
        return Ok(dead_letter["state"] == "discarded");
    }
    let impact = &dead_letter["discard_impact"];
    writeln!(
        out,
        "dead letter {id} of {service}, {}: {}",
        position(&dead_letter),
        text(&dead_letter["reason"])
    )?;
    show_impact(impact, "if discarded", out)?;
    let has_write_off = impact["write_offs"].as_array().is_some_and(|them| !them.is_empty());
    let has_remedy = impact["remedy"].is_object();
    let DiscardConsent { yes, mut cancel, mut write_off } = consent;
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
        cancel |= has_remedy
            && confirm(
                &format!("Also request the remedy ({})", text(&impact["remedy"]["description"])),
                out,
            )?;
    }
    let request = json!({ "reason": reason, "write_off": write_off });
    let response = admin.post(&format!("/dead-letters/{id}/discard"), Some(&request)).await?;
    if !response.is_success() {
        let hint = if response.problem_type().as_deref() == Some("write-off-needed") {
            " Here: WRITE_OFF=1."
        } else {
            ""
        };
        writeln!(out, "{}{hint}", detail(&response))?;
        return Ok(false);
    }
    writeln!(out, "dead letter {id} of {service} is discarded")?;
    if cancel && has_remedy {
        let (at, path) = (text(&impact["remedy"]["service"]), text(&impact["remedy"]["path"]));
        let url = format!(
            "{}{path}",
            admin.client.addresses.apis.get(&*at).context("a remedy names its service")?
        );
        let response = admin.client.send(Method::POST, &url, None, None).await?;
        ensure!(response.is_success(), "{at} refused POST {path}: {}", detail(&response));
        writeln!(out, "{at} accepted POST {path}")?;
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
