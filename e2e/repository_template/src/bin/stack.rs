//! The stack on this machine: Kafka, a schema registry, a PostgreSQL cluster and the service. `make` lists what it does.

#[path = "../stack_description.rs"]
mod stack_description;

fn main() -> std::process::ExitCode {
    launcher::program::main(stack_description::stack_description())
}
