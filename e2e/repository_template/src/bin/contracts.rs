//! The program `contracts`: `apply` creates the topics and registers the schemas, `record` records a changed schema,
//! `asyncapi` describes them all.

fn main() -> std::process::ExitCode {
    events::CONTRACTS.main()
}
