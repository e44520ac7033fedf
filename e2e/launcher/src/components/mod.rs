//! The components that a stack can have. Each file has one kind. A new kind is a new file, and a line in [`KINDS`].

use anyhow::{Context, Result, ensure};

use crate::component::{Component, Stage};
use crate::description::StackDescription;
use crate::ports::PortOffset;
use crate::state::StackState;

pub mod connect;
pub mod connect_credentials;
pub mod console;
pub mod insights;
pub mod kafka;
pub mod outside;
pub mod postgres;
pub mod postgres_roles;
pub mod registry;
pub mod service;

/// The components of each kind that a description allows.
const KINDS: [fn(&StackDescription) -> Vec<Component>; 8] = [
    postgres::components,
    kafka::components,
    registry::components,
    service::components,
    outside::components,
    connect::components,
    insights::components,
    console::components,
];

/// Every component that a stack of this description can have, with one instance of each service.
fn possible(description: &StackDescription) -> Vec<Component> {
    KINDS.iter().flat_map(|components| components(description)).collect()
}

/// The components of a stack in this state, in the order in which they start.
pub fn of_stack(description: &StackDescription, state: &StackState) -> Vec<Component> {
    let further = state.instances.iter().filter_map(|name| description.component(name).ok());
    let mut components: Vec<Component> = possible(description).into_iter().chain(further).collect();
    components.retain(|component| (component.belongs_to)(state));
    components.sort_by_key(|component| component.stage);
    components
}

/// The ports of a stack of this description, as distances from the base.
pub fn port_offsets(description: &StackDescription) -> Vec<PortOffset> {
    possible(description).iter().flat_map(|component| component.ports.clone()).collect()
}

/// The file names of all programs of a stack, as `/proc/<pid>/exe` shows them. A control room or an optional service may
/// be left that this description does not have.
pub fn programs(description: &StackDescription) -> Vec<String> {
    let description = StackDescription { console: true, ..description.of_stack(|_| true) };
    possible(&description).iter().map(|component| component.program.clone()).collect()
}

impl StackDescription {
    /// The component of this name: `kafka`, `registry`, `console`, `<service>-db`, `<service>`, `<service>-2` for
    /// a second instance, `connect` in a stack with Kafka Connect, or the name of a
    /// stream processor.
    ///
    /// # Errors
    /// If the stack has no such component. The error lists all names.
    pub fn component(&self, name: &str) -> Result<Component> {
        let found = possible(self).into_iter().find(|component| component.name == name);
        let found = found.or_else(|| service::further_instance(self, name));
        found.with_context(|| {
            format!("there is no component `{name}`: choose {}", self.component_names())
        })
    }

    /// The components of a new stack, with one instance of each service.
    pub fn components(&self) -> Vec<Component> {
        of_stack(self, &StackState::default())
    }

    /// Everything but the services: the databases, Kafka and the registry.
    pub fn infrastructure(&self) -> Vec<Component> {
        let mut components = self.components();
        components.retain(|component| component.stage == Stage::Infrastructure);
        components
    }

    /// The names of all components in one line, for messages.
    pub fn component_names(&self) -> String {
        let mut names: Vec<String> = self.components().iter().map(Component::to_string).collect();
        let last = names.pop().unwrap_or_default();
        let all = format!("{} or {last}", names.join(", "));
        match self.services.first() {
            Some(service) => format!("{all} ({service}-2 is a second instance)"),
            None => all,
        }
    }

    /// Checks that a user has named a component: a Makefile passes an empty name if its variable `SERVICE` is not set.
    ///
    /// # Errors
    /// If the name is empty. The error lists all names.
    pub fn require_name(&self, name: &str) -> Result<()> {
        let names = self.component_names();
        ensure!(!name.is_empty(), "set SERVICE=… to one of these: {names}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::description::tests::describe;
    use crate::ports::Ports;

    #[test]
    fn every_component_is_found_by_its_name() {
        let stack = describe(&["a", "b_2", "c"]);
        for component in stack.components() {
            assert_eq!(stack.component(&component.name).unwrap().name, component.name);
            let refusal = stack.component("nothing").unwrap_err().to_string();
            assert!(refusal.contains(&component.name), "{refusal}");
        }
        for further in ["a-2", "b_2-19", "connect", "sums"] {
            assert_eq!(stack.component(further).unwrap().name, further);
        }
        assert_eq!(stack.components().len(), 2 * stack.services.len() + 3);
        assert_eq!(stack.infrastructure().len(), stack.services.len() + 2);
        for name in ["", "a-1", "a-", "d-db", "kafka-2", "console-2", "connect-2"] {
            assert!(stack.component(name).is_err(), "{name}");
        }
    }

    #[test]
    fn no_two_ports_are_the_same_and_each_component_listens_on_its_own() {
        let stack = describe(&["a", "b"]).of_stack(|_| true);
        let ports = Ports::new(&port_offsets(&stack));
        let without = Ports::new(&port_offsets(&describe(&["a", "b"])));
        assert!(without.get("extra-kafka").is_ok() && without.get("extra").is_err());
        let numbers: BTreeSet<u16> = ports.iter().map(|(_, port)| port).collect();
        assert_eq!(numbers.len(), ports.iter().count());
        for (name, port) in [("a", 8001), ("b-probe", 9002), ("a-admin", 9011), ("b-db", 54322)] {
            assert_eq!(ports.get(name).unwrap(), port, "{name}");
        }
        let listening = |name: &str| stack.component(name).unwrap().listens_on(&ports);
        assert_eq!(listening("a"), ["a", "a-probe", "a-admin"]);
        assert_eq!(listening("console"), ["console", "console-probe"]);
        assert_eq!(listening("outside"), ["outside"]);
        let own = ["kafka", "kafka-controller", "a-kafka", "b-kafka"];
        let kafka = own.into_iter().chain(["connect-kafka", "extra-kafka", "sums-kafka"]);
        assert!(listening("kafka").into_iter().eq(kafka));
    }
}
