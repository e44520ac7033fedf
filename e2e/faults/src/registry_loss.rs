//! A schema registry that loses its data, and gives other ids from then on.

use std::collections::BTreeMap;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use launcher::Stack;
use launcher::directories::programs_directory;
use reqwest::Client;

/// Deletes the data of the registry, starts it empty, and registers so many schemas of strangers, which take the first
/// ids. The contracts are not applied.
///
/// # Errors
/// If the registry does not stop or start, or refuses a schema.
pub async fn lose_data(stack: &Stack, strangers: usize) -> Result<()> {
    stack.wipe("registry").await?;
    stack.start("registry").await?;
    let client = Client::builder().no_proxy().build()?;
    for nth in 1..=strangers {
        let url = format!("{}/subjects/stranger-{nth}-value/versions", stack.registry_url()?);
        let schema = format!(
            r#"{{"type":"record","name":"Stranger{nth}","fields":[{{"name":"text","type":"string"}}]}}"#
        );
        let body = BTreeMap::from([("schema", schema)]);
        let answer = client.post(url).json(&body).send().await?;
        ensure!(answer.status().is_success(), "{}", answer.text().await?);
    }
    Ok(())
}

/// Applies the contracts with this value of the variable that permits it beside an empty registry. Returns what the program
/// wrote, and how it ended.
///
/// # Errors
/// If the description of the stack names no program of the contracts, or it cannot be run.
pub fn apply_contracts(stack: &Stack, accept: Option<&str>) -> Result<Output> {
    let program = stack.description().contracts_program.as_ref().context("no program")?;
    let mut contracts = Command::new(programs_directory()?.join(program));
    contracts
        .arg("apply")
        .envs(stack.environment_of_contracts()?)
        .envs(accept.map(|accept| ("ACCEPT_EMPTY_REGISTRY", accept)));
    Ok(contracts.output()?)
}
