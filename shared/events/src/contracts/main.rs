//! `contracts apply` creates in Kafka and the schema registry what this crate declares: every topic
//! with its partitions and retention, and every schema under `FULL_TRANSITIVE` compatibility.
//!
//! It is the only program that creates either; services only read them. It can be repeated. A
//! difference that cannot be changed under running services is an error. A cluster of another stack
//! is an error too, and the command then changes nothing.
//!
//! `contracts record`, run in a checkout, records a changed schema as its next version.

mod apply; // creates topics and schemas
mod cluster_owner; // the stack that a Kafka cluster belongs to
mod versions; // every recorded version of every schema
mod compatibility; // whether two versions can read each other

use std::path::Path;
use std::process::ExitCode;

use chassis::config::env::{self, BadConfiguration};

use apply::Settings;

/// The exit status for a wrong configuration, as in a service.
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
