//! The program `contracts` of this system: `contracts apply` creates its topics and registers its
//! schemas, `contracts record` records a changed schema, `contracts asyncapi` describes them all.
//!
//! It is the only program that creates topics or schemas; services only read them.

use std::process::ExitCode;

fn main() -> ExitCode {
    declaration::CONTRACTS.main()
}
