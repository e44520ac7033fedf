//! The stack of the outage test: this service with its database, Kafka and a registry.

use std::path::Path;

use launcher::StackDescription;

/// One service. Its project is that of the whole stack, which `e2e` describes. It is not secured: the test has no
/// token.
pub fn stack_description() -> StackDescription {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2);
    StackDescription {
        project: "holdfast".to_string(),
        root: checkout.expect("a service lies in `services`").to_path_buf(),
        services: vec!["shop".to_string()],
        contracts_program: Some("contracts".to_string()),
        console: false,
        stream_processors: Vec::new(),
        optional_services: Vec::new(),
        secure: false,
    }
}
