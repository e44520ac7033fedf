//! The frame of every scenario: the stack is started if it does not run, and left as it was found.

use anyhow::{Context, Result};
use launcher::{ComponentState, Stack};

use crate::client::http_client::Client;
use crate::console::print_line;
use crate::workload::seed;

/// Starts what does not run, runs a proof, and prints the verdict: whether the proof held. `proof`
/// returns the violations, as sentences.
pub async fn run_proof(
    stack: &Stack,
    what: &str,
    proof: impl AsyncFnOnce(&Client) -> Result<Vec<String>>,
) -> Result<bool> {
    with_stack_restored(stack, is_stack_up(stack).await?, async {
        print_line("Starting the components that do not run …");
        stack.up().await?;
        let client = Client::for_stack(stack)?;
        seed::run(&client).await?;
        let violations = proof(&client).await?;
        let verdict = match violations.is_empty() {
            true => "held".to_string(),
            false => format!("BROKEN: {}", violations.join("; ")),
        };
        print_line(&format!("\nVERDICT  {what}: {verdict}."));
        Ok(violations.is_empty())
    })
    .await
}

pub async fn is_stack_up(stack: &Stack) -> Result<bool> {
    Ok(stack.status().await?.iter().any(|component| component.state != ComponentState::Stopped))
}

/// Runs a scenario until it ends or Ctrl-C is pressed. The stack is stopped again if it was not up
/// before.
pub async fn with_stack_restored<T>(
    stack: &Stack,
    was_up: bool,
    scenario: impl Future<Output = Result<T>>,
) -> Result<T> {
    let result = tokio::select! {
        done = scenario => done,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("waiting for Ctrl-C")?;
            Err(anyhow::anyhow!("interrupted"))
        }
    };
    if !was_up {
        print_line("\nStopping the stack again; its data is kept …");
        stack.down().await?;
    } else if result.is_err() {
        print_line("\nThe stack was up before: starting the components that were killed …");
        stack.up().await?;
    } else {
        print_line("\nThe stack was up before, and stays up.");
    }
    result
}
