//! The stack on this machine: Kafka, a schema registry, a PostgreSQL cluster and the service. `make` lists what it does.

use launcher::StackDescription;

#[path = "../../tests/stack_description/mod.rs"]
mod stack_description;

fn main() -> std::process::ExitCode {
    let secure = launcher::secure_from_environment();
    launcher::program::main(StackDescription { secure, ..stack_description::stack_description() })
}
