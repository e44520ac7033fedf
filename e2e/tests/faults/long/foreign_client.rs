//! A client in another language, with Confluent's own deserializer, reads the topics of the stream processor.

use std::path::Path;
use std::process::Command;

use e2e::scenarios::streams::{self, Sums};
use e2e::stack_description::checkout;
use serde::Deserialize;

use super::*;

/// What the client prints.
#[derive(Deserialize)]
struct ForeignSums {
    #[serde(flatten)]
    sums: Sums,
    /// The orders in `orders.confirmed`.
    confirmed: i64,
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute and fetches a client of Kafka: make faults"]
async fn a_foreign_client_reads_the_sums_of_the_orders() -> Result<()> {
    let python = checkout().join("target/foreign-client/bin/python");
    if !python.exists()
        && let Err(error) = install(&python, "e2e/foreign_client.txt")
    {
        return skip_or_fail(&format!("there is no client of Kafka in Python: {error:#}"));
    }
    on_ephemeral_stack(async |stack| {
        stack.process_streams()?;
        let client = start_and_seed(stack).await?;
        under_load_without_errors(&client, 50, 6, async { Ok(()) }).await?;
        let expected = streams::wait_until_equal(&client, stack, TIMEOUT).await?;
        let kafka = client.addresses.kafka.get("bootstrap.servers").context("an address")?;
        let output = Command::new(&python)
            .arg(checkout().join("e2e/foreign_client.py"))
            .args([kafka, &stack.registry_url()?])
            .output()?;
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{errors}");
        let read: ForeignSums = serde_json::from_slice(&output.stdout)?;
        ensure!(read.sums == expected, "it read {:?}, and the orders are {expected:?}", read.sums);
        let confirmed = expected.outcomes["confirmed"];
        ensure!(read.confirmed == confirmed, "{} of {confirmed} orders", read.confirmed);
        Ok(())
    })
    .await
}

/// A virtual environment with the packages of a list.
pub fn install(python: &Path, list: &str) -> Result<()> {
    let folder = python.ancestors().nth(2).context("a folder")?;
    let run = |program: &Path, arguments: &[&str]| -> Result<()> {
        let output = Command::new(program).args(arguments).current_dir(checkout()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    let name = folder.display().to_string();
    run(Path::new("python3"), &["-m", "venv", &name])?;
    let installed =
        run(python, &["-m", "pip", "install", "--quiet", "--require-hashes", "-r", list]);
    if installed.is_err() {
        std::fs::remove_dir_all(folder)?;
    }
    installed
}
