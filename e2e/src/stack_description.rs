//! The stack of this project, as the launcher starts it.

use std::path::{Path, PathBuf};

use launcher::StackDescription;

/// All services of the saga; the Makefile and the structure tests read this list. A further one needs its name here and a larger array: its ports, its database and
/// Kafka's listener for it follow from its position.
pub const SERVICES: [&str; 3] = ["order", "payment", "stock"];

/// What the launcher needs to know. A run that loads, breaks or measures the stack has no control room beside it.
pub fn stack_description() -> StackDescription {
    StackDescription {
        project: "holdfast".to_string(),
        root: checkout(),
        services: SERVICES.map(String::from).to_vec(),
        contracts_program: Some("contracts".to_string()),
        console: false,
        stream_processors: vec![events::insights::NAME.to_string()],
        secure: launcher::secure_from_environment(),
    }
}

/// The same stack with the control room: what a user starts, stops and looks at.
pub fn with_console() -> StackDescription {
    StackDescription { console: true, ..stack_description() }
}

/// The checkout that this program was built from.
pub fn checkout() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_path_buf()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_component_is_a_container_of_the_same_name() {
        let text = std::fs::read_to_string(checkout().join("docker-compose.yml")).unwrap();
        for component in with_console().components() {
            assert!(text.contains(&format!("\n  {component}:\n")), "{component}");
        }
        let container = stack_description().contracts_program.unwrap();
        assert!(text.contains(&format!("\n  {container}:\n")), "{container}");
        assert!(SERVICES.iter().all(|service| text.contains(&format!("SERVICE: {service} "))));
    }
}
