//! Which processors each component may use. A benchmark on a machine with many cores sets this apart,
//! so that Kafka and the load take nothing from what is measured.

use crate::process::LaunchCommand;
use crate::topology::Component;

/// The variables that restrict components, each to a list of processors such as `0-7,16`.
const SERVICES_CPUS: &str = "SERVICES_CPUS";
const KAFKA_CPUS: &str = "KAFKA_CPUS";

/// The variable that restricts a component. Services and databases share a list, since a service waits for
/// its database most of the time.
fn variable_for(component: &Component) -> &'static str {
    match component {
        Component::Service { .. } | Component::Database(_) => SERVICES_CPUS,
        Component::Kafka
        | Component::Registry
        | Component::Connect
        | Component::Streams(_)
        | Component::Console
        | Component::Jaeger => KAFKA_CPUS,
    }
}

/// The command that starts a component on its processors. They are set before the program starts, because the
/// runtimes of Rust and Java count processors at their start and make as many threads.
pub(crate) fn place(component: &Component, command: LaunchCommand) -> LaunchCommand {
    match std::env::var(variable_for(component)) {
        Ok(cpus) if !cpus.is_empty() => on_processors(&cpus, command),
        _ => command,
    }
}

fn on_processors(cpus: &str, command: LaunchCommand) -> LaunchCommand {
    let program = command.program.display().to_string();
    let mut arguments = vec!["--cpu-list".to_string(), cpus.to_string(), program];
    arguments.extend(command.arguments);
    LaunchCommand { program: "taskset".into(), arguments, ..command }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_database_is_beside_its_service_and_all_else_beside_kafka() {
        let database = Component::Database("shop".to_string());
        for component in [Component::service("shop"), Component::instance("shop", 2), database] {
            assert_eq!(variable_for(&component), SERVICES_CPUS);
        }
        for component in [Component::Kafka, Component::Registry, Component::Console] {
            assert_eq!(variable_for(&component), KAFKA_CPUS);
        }
    }

    #[test]
    fn the_program_starts_on_its_processors_as_the_unprivileged_user() {
        let arguments = vec!["-D".to_string(), "data".to_string()];
        let command = LaunchCommand {
            program: "postgres".into(),
            arguments,
            unprivileged: true,
            ..LaunchCommand::default()
        };
        let line = on_processors("0-3", command).command_line().join(" ");
        assert!(line.starts_with("setpriv "), "{line}");
        assert!(line.ends_with(" taskset --cpu-list 0-3 postgres -D data"), "{line}");
    }
}
