//! What a command that people watch says, step by step, and how it leaves the stack as it found it.

use std::io::Write;

use anyhow::{Context, Result};

use crate::client::Client;
use crate::stack::State;
use crate::{Stack, seed};

/// Starts what does not run, has a proof made there, and says its verdict: whether it held. `proof`
/// answers what was not as promised, in sentences.
pub async fn proved(
    stack: &Stack,
    what: &str,
    proof: impl AsyncFnOnce(&Client) -> Result<Vec<String>>,
) -> Result<bool> {
    as_found(stack, is_up(stack).await?, async {
        say("Starting what does not run yet …");
        stack.up().await?;
        let client = Client::of(stack)?;
        seed::run(&client).await?;
        let faults = proof(&client).await?;
        let verdict = match faults.is_empty() {
            true => "held".to_string(),
            false => format!("BROKEN: {}", faults.join("; ")),
        };
        say(&format!("\nVERDICT  {what}: {verdict}."));
        Ok(faults.is_empty())
    })
    .await
}

/// The head of a numbered step.
pub fn step(number: u32, what: &str) {
    say(&format!("\n{number}. {what}\n"));
}

/// Standard output, at once; a reader that went away is no reason to stop half-way.
pub fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

pub async fn is_up(stack: &Stack) -> Result<bool> {
    Ok(stack.status().await?.iter().any(|member| member.state != State::Stopped))
}

/// Tells a story to its end or to Ctrl-C. The stack is taken down again if it was not up before.
pub async fn as_found<T>(
    stack: &Stack,
    was_up: bool,
    story: impl Future<Output = Result<T>>,
) -> Result<T> {
    let told = tokio::select! {
        told = story => told,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("waiting for Ctrl-C")?;
            Err(anyhow::anyhow!("interrupted"))
        }
    };
    if !was_up {
        say("\nTaking the stack down again; its data stays for the next time …");
        stack.down().await?;
    } else if told.is_err() {
        say("\nThe stack was up before: starting whatever was left killed …");
        stack.up().await?;
    } else {
        say("\nThe stack was up before, and stays up.");
    }
    told
}
