//! The stack on this machine, for the program `stack` and for tests.

use launcher::StackDescription;

/// One service, with a database, Kafka and a registry. It is not secured: the tests have no token.
pub fn stack_description() -> StackDescription {
    StackDescription {
        project: "shop".to_string(),
        root: env!("CARGO_MANIFEST_DIR").into(),
        services: vec!["shop".to_string()],
        contracts_program: Some("contracts".to_string()),
        console: false,
        stream_processors: Vec::new(),
        optional_services: Vec::new(),
        secure: false,
    }
}
