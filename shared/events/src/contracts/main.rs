//! `contracts apply` makes Kafka and the schema registry hold what is declared here: every topic,
//! with its partitions and retention, and every schema, under `FULL_TRANSITIVE` compatibility.
//!
//! It is the one place that creates either; services only look up. Safe to run twice. What is there
//! and differs in a way that can't be changed under running services is an error, not a surprise; so is a
//! cluster that belongs to another stack, of which nothing is then changed.
//!
//! `contracts record`, run in a checkout, writes down a schema that was changed as its next version.

mod apply; // what Kafka and the registry are made to hold
mod cluster_owner; // the stack that a Kafka cluster belongs to
mod versions; // every version that was ever recorded, and what keeps them readable
mod compatibility; // whether two versions can read each other

use std::path::Path;
use std::process::ExitCode;

use chassis::config::env::{self, BadConfiguration};

use apply::Settings;

/// As of a service.
const BAD_CONFIGURATION: u8 = 64;

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["apply"] => apply::apply().await,
        ["record"] => record_versions(),
        _ => {
            let variables = env::describe_variables::<Settings>();
            eprintln!("usage: contracts apply | record\n\nThe environment of apply:\n{variables}");
            return ExitCode::from(BAD_CONFIGURATION);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("contracts: {error:#}");
            match error.is::<BadConfiguration>() {
                true => ExitCode::from(BAD_CONFIGURATION),
                false => ExitCode::FAILURE,
            }
        }
    }
}

fn record_versions() -> anyhow::Result<()> {
    let made = versions::record_versions(Path::new("schemas"))?;
    made.iter().for_each(|file| println!("recorded {}", file.display()));
    if made.is_empty() {
        println!("every schema is its newest recorded version");
    }
    Ok(())
}
