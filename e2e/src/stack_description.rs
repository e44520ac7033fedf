//! The stack of this project, as the launcher starts it.

use std::path::{Path, PathBuf};

use chassis::event::Topic;
use launcher::{OptionalService, Stack, StackDescription, is_on};

const LIST: &[&str] = &include!("../../services/list.rs");

/// All services of the saga. The ports of each, its database and Kafka's listener for it follow from its position.
pub const SERVICES: [&str; LIST.len()] = *LIST.first_chunk().expect("as many as there are");

/// The service that ships confirmed orders, of a stack that was once started with `SHIPPING=1`, and what it calls.
pub const SHIPPING: &str = events::shipments::NAME;
pub const CARRIER: &str = "carrier";

/// What the launcher needs to know. A run that loads, breaks or measures the stack has no control room beside it.
pub fn stack_description() -> StackDescription {
    StackDescription {
        project: "holdfast".to_string(),
        root: checkout(),
        services: SERVICES.map(String::from).to_vec(),
        contracts_program: Some("contracts".to_string()),
        console: false,
        stream_processors: vec![events::insights::NAME.to_string()],
        optional_services: vec![OptionalService {
            name: SHIPPING.to_string(),
            calls: CARRIER.to_string(),
            is_wanted: is_on("SHIPPING"),
        }],
        secure: launcher::secure_from_environment(),
    }
}

/// The same stack with the control room: what a user starts, stops and looks at.
pub fn with_console() -> StackDescription {
    StackDescription { console: true, ..stack_description() }
}

/// The same stack with shipping and its carrier.
pub fn with_shipping() -> StackDescription {
    let mut description = stack_description();
    description.optional_services.iter_mut().for_each(|it| it.is_wanted = true);
    description
}

/// Whether the launcher runs shipping and its carrier for a stack.
pub fn ships(stack: &Stack) -> bool {
    stack.is_native() && stack.description().services.iter().any(|service| service == SHIPPING)
}

/// The services of the saga that consume a topic.
pub fn subscribers(topic: &Topic) -> Vec<&'static str> {
    let mut subscribers = declaration::subscribers(topic);
    subscribers.retain(|service| SERVICES.contains(service));
    subscribers
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
        let read = |file| std::fs::read_to_string(checkout().join(file)).unwrap_or_default();
        // The second has what the first lacks, as JSON.
        let text = read("docker-compose.yml") + &read("docker-compose.override.yml");
        let has = |name: &str| {
            text.contains(&format!("\n  {name}:\n")) || text.contains(&format!("\"{name}\": {{"))
        };
        for component in with_console().components() {
            assert!(has(&component.to_string()), "{component}");
        }
        let container = stack_description().contracts_program.unwrap();
        assert!(has(&container), "{container}");
    }
}
