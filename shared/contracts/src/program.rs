//! The program: one command, from the arguments of the process to its exit code.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use chassis::config::env::{self, BadConfiguration};

use crate::apply::{self, Settings};
use crate::{Contracts, versions};

/// The exit status for a wrong configuration, as in a service.
const BAD_CONFIGURATION: u8 = 64;

impl Contracts {
    /// The `main` of the program that applies these contracts. The one argument of the process is
    /// its command:
    ///
    /// - `apply` creates the topics in Kafka and registers the schemas. It can be repeated, and it
    ///   reads the environment: without arguments, the program lists the variables.
    /// - `record` records each changed schema as its next version, unless some version could not be
    ///   read any more.
    /// - `asyncapi` writes the AsyncAPI document to the standard output.
    /// - `topics` writes the topics to the standard output, as `KafkaTopic` objects of Strimzi.
    /// - `acls [FEATURE…]` writes the rights in Kafka to the standard output, as arguments of `kafka-acls.sh`: those of the
    ///   system, and those of the named features.
    /// - `users [FEATURE]` writes them as `KafkaUser` objects of Strimzi: those of the system, or those of one feature.
    ///
    /// The exit code is 0, or 64 if the configuration is wrong, or 1 after any other error, which is
    /// printed.
    pub fn main(&self) -> ExitCode {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["apply"] => self.run_apply(),
            ["record"] => self.record_versions(),
            ["asyncapi"] => self.asyncapi().map(|document| print!("{document}")),
            ["topics"] => {
                print!("{}", self.kafka_topics());
                Ok(())
            }
            ["acls", ref features @ ..] => self.kafka_acls(features).map(|acls| print!("{acls}")),
            ["users"] => self.kafka_users(None).map(|users| print!("{users}")),
            ["users", feature] => self.kafka_users(Some(feature)).map(|users| print!("{users}")),
            _ => {
                eprintln!("{}", self.usage());
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

    fn usage(&self) -> String {
        // The default is this system's, and the declaration of the variable is every system's.
        let default = format!("  STACK_NAME (default {})\n", self.name);
        let variables = env::describe_variables::<Settings>().replace("  STACK_NAME\n", &default);
        format!(
            "usage: contracts apply | record | asyncapi | topics | acls [FEATURE…] | users [FEATURE]\n\nThe environment of apply:\n{variables}"
        )
    }

    fn run_apply(&self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Runtime::new().context("the runtime could not start")?;
        runtime.block_on(apply::apply(self))
    }

    fn record_versions(&self) -> anyhow::Result<()> {
        let made = versions::record_versions(Path::new(self.schemas_folder))?;
        made.iter().for_each(|file| println!("recorded {}", file.display()));
        if made.is_empty() {
            println!("every schema is its newest recorded version");
        }
        Ok(())
    }
}
