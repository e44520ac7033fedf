//! The instances of the services.

use std::path::Path;

use anyhow::{Result, ensure};
use futures::future::BoxFuture;

use crate::component::{Component, Context, Kind, Stage};
use crate::description::{StackDescription, instance_name};
use crate::ports::{Ports, free_port, port_beside};
use crate::processes::{LaunchCommand, Variables, variables};
use crate::state::StackState;

/// The ends of the names of an instance's ports: for clients, for `/livez`, `/readyz` and `/metrics`, and for operators.
const PORTS: [&str; 3] = ["", "-probe", "-admin"];

/// The distance between the ports of two instances of a service.
const INSTANCE_PORT_STEP: u16 = 100;

struct Service {
    service: String,
    name: String,
    /// The system outside that it calls, if it is optional.
    calls: Option<String>,
}

pub fn components(description: &StackDescription) -> Vec<Component> {
    let first = |(service, position): (&String, u16)| {
        let port = |end: &str, offset: u16| (format!("{service}{end}"), offset + position);
        let ports = [("", 0), ("-probe", 1000), ("-admin", 1010)];
        let ports = ports.map(|(end, offset)| port(end, offset)).to_vec();
        Component { ports, ..instance(description, service, 1) }
    };
    description.positions().map(first).collect()
}

/// The instance of this name, such as `shop-2`, if there is such a service.
pub fn further_instance(description: &StackDescription, name: &str) -> Option<Component> {
    let (service, number) = name.split_once('-')?;
    let number = number.parse().ok().filter(|number| *number >= 2)?;
    description
        .services
        .iter()
        .any(|it| it == service)
        .then(|| instance(description, service, number))
}

fn instance(description: &StackDescription, service: &str, number: u16) -> Component {
    let name = instance_name(service, number);
    let optional = description.optional_parts().find(|(it, _)| it.name == service);
    let calls = optional.map(|(it, _)| it.calls.clone());
    let kind = Service { service: service.to_string(), name: name.clone(), calls };
    Component {
        // A variable of one instance goes before that of its service.
        names_in_settings: vec![service.to_string(), name.clone()],
        ..Component::new(&name, service, Stage::Service, kind)
    }
}

/// The ports of a further instance: those of the first one plus a hundred each, as in 8001, 8101, 8201. If those are
/// taken, or the first one's are random, any free ports.
pub fn ports_of_instance(state: &StackState, service: &str, instance: u16) -> Result<Ports> {
    let distance = INSTANCE_PORT_STEP.saturating_mul(instance - 1);
    let beside =
        |end: &str| port_beside(state.ports.get(&format!("{service}{end}")).ok()?, distance);
    let numbers: Option<Vec<u16>> = PORTS.into_iter().map(beside).collect();
    let numbers = match numbers {
        Some(numbers) => numbers,
        None => PORTS.into_iter().map(|_| free_port()).collect::<Result<_>>()?,
    };
    let (mut ports, name) = (Ports::default(), instance_name(service, instance));
    for (end, number) in PORTS.into_iter().zip(numbers) {
        ports.insert(format!("{name}{end}"), number);
    }
    Ok(ports)
}

/// A command of a program that cargo has built, such as `serve` or `migrate`.
pub fn program(programs: &Path, name: &str, subcommand: &str) -> Result<LaunchCommand> {
    let program = programs.join(name);
    ensure!(
        program.is_file(),
        "there is no program {}: build it first, in the profile of this program",
        program.display()
    );
    Ok(LaunchCommand::new(program, [subcommand]))
}

impl Kind for Service {
    fn environment(&self, state: &StackState) -> Result<Variables> {
        let name = &self.name;
        let mut own = variables([
            ("HTTP_ADDR", state.address(name)?),
            ("PROBE_ADDR", state.address(&format!("{name}-probe"))?),
            ("ADMIN_ADDR", state.address(&format!("{name}-admin"))?),
        ]);
        own.extend(state.variables_of_client(&self.service)?);
        own.extend(state.database_variables(&self.service)?);
        if let Some(system) = &self.calls {
            own.extend(state.variables_of_caller(system)?);
        }
        Ok(own)
    }

    fn command<'a>(&'a self, context: &'a Context) -> BoxFuture<'a, Result<LaunchCommand>> {
        Box::pin(
            async move { program(&context.state.programs_of(&self.name)?, &self.service, "serve") },
        )
    }
}
