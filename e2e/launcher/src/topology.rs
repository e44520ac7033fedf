//! The description of a stack, and its components by their names.

use std::fmt::{self, Display};
use std::path::PathBuf;

use anyhow::{Result, bail, ensure};

/// The address of every component: loopback.
pub const HOST: &str = "127.0.0.1";

/// Names that a service cannot have, because the stack has another component or program of that
/// name.
const RESERVED_NAMES: [&str; 6] = ["console", "kafka", "registry", "connect", "java", "postgres"];

/// What a stack consists of. Everything else follows from it: the ports, the databases and Kafka's
/// listeners from the position of each service, and the directories from the project and its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StackDescription {
    /// The project's name, such as `shop`. Temporary directories and Kafka clusters carry it, and
    /// it is the default password of databases that docker compose runs.
    pub project: String,
    /// The root of the project's checkout, an absolute path. The stack's data is in `.holdfast` below
    /// it unless `HOLDFAST_STATE` is set, and `docker-compose.yml` lies in it.
    pub root: PathBuf,
    /// The services. A new one comes last, so that no port of the others moves. Each name is that of
    /// a program, of its database and of the roles in it, and begins the names of its variables:
    /// lower-case letters, digits and `_`.
    pub services: Vec<String>,
    /// The program that applies topics and schemas, if there is one: [`Stack::up`] runs it as
    /// `<program> apply`. In docker compose its container has the same name.
    ///
    /// [`Stack::up`]: crate::Stack::up
    pub contracts_program: Option<String>,
    /// Whether the stack has a control room: the program `console`, which [`Stack::up`] starts after the
    /// services. It is no service: it has no database, and no run counts on it.
    ///
    /// [`Stack::up`]: crate::Stack::up
    pub console: bool,
    /// The stream processors that a stack may have: each is a Maven project in the folder `services/<name>`, whose jar
    /// has this name. It is no service: it has no database, no run counts on it, and it starts only in a stack to which
    /// [`Stack::process_streams`] has added it.
    ///
    /// [`Stack::process_streams`]: crate::Stack::process_streams
    pub stream_processors: Vec<String>,
    /// Whether a new stack encrypts every connection, and every component knows its clients by name.
    pub secure: bool,
}

/// Whether the variable `SECURE` asks for a secured stack: it is `1` or `true`.
pub fn secure_from_environment() -> bool {
    is_set("SECURE")
}

/// Whether the variable `STREAMS` asks for a stack with its stream processors: it is `1` or `true`.
pub(crate) fn streams_from_environment() -> bool {
    is_set("STREAMS")
}

/// Whether the variable `CONNECT` asks for a stack with Kafka Connect: it is `1` or `true`.
pub(crate) fn connect_from_environment() -> bool {
    is_set("CONNECT")
}

fn is_set(variable: &str) -> bool {
    std::env::var(variable).is_ok_and(|value| ["1", "true"].contains(&value.as_str()))
}

impl StackDescription {
    /// The component of this name: `kafka`, `registry`, `console`, `<service>-db`, `<service>`, `<service>-2` for
    /// a second instance, `connect` in a stack with Kafka Connect, or the name of a
    /// stream processor.
    ///
    /// # Errors
    /// If the stack has no such component. The error lists all names.
    pub fn component(&self, name: &str) -> Result<Component> {
        let (service, rest) = name.split_once('-').unwrap_or((name, ""));
        let known = self.services.iter().any(|known| known == service);
        Ok(match (name, rest) {
            ("kafka", _) => Component::Kafka,
            ("registry", _) => Component::Registry,
            ("console", "") if self.console && name == "console" => Component::Console,
            ("connect", "") if name == "connect" => Component::Connect,
            _ if self.stream_processors.iter().any(|known| known == name) => {
                Component::Streams(name.to_string())
            }
            (_, "db") if known => Component::Database(service.to_string()),
            (_, "") if known && service == name => Component::service(service),
            (_, number) if known && number.parse::<u16>().is_ok_and(|instance| instance >= 2) => {
                Component::Service { service: service.to_string(), instance: number.parse()? }
            }
            _ => bail!("there is no component `{name}`: choose {}", self.component_names()),
        })
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

    /// Everything but the services: the databases, Kafka and the registry.
    pub fn infrastructure(&self) -> Vec<Component> {
        let databases = self.services.iter().cloned().map(Component::Database);
        databases.chain([Component::Kafka, Component::Registry]).collect()
    }

    /// The components of a stack with one instance of each service, services first.
    pub fn components(&self) -> Vec<Component> {
        let services = self.services.iter().map(|service| Component::service(service));
        let databases = self.services.iter().cloned().map(Component::Database);
        let console = self.console.then_some(Component::Console);
        let infrastructure = [Component::Kafka, Component::Registry].into_iter().chain(databases);
        services.chain(infrastructure).chain(console).collect()
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

    /// The file names of all programs of a stack, as `/proc/<pid>/exe` shows them.
    pub(crate) fn programs(&self) -> Vec<&str> {
        ["java", "postgres", "console"]
            .into_iter()
            .chain(self.services.iter().map(String::as_str))
            .collect()
    }

    /// Checks that every name can be part of the names that are made of it.
    pub(crate) fn check(&self) -> Result<()> {
        let is_plain = |name: &str, others: &str| {
            let of = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || others.contains(c);
            name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(of)
        };
        let project = &self.project;
        ensure!(
            is_plain(project, "_-"),
            "the project `{project}` must have a name of lower-case letters, digits, `_` and `-`"
        );
        ensure!(self.root.is_absolute(), "{} is not an absolute path", self.root.display());
        for (nth, name) in self.services.iter().enumerate() {
            ensure!(
                is_plain(name, "_"),
                "the service `{name}` must have a name of lower-case letters, digits and `_`"
            );
            let is_taken = RESERVED_NAMES.contains(&name.as_str())
                || self.contracts_program.as_ref() == Some(name)
                || self.stream_processors.contains(name);
            ensure!(
                !is_taken,
                "no service can have the name `{name}`: another part of the stack has it"
            );
            ensure!(!self.services[..nth].contains(name), "two services have the name `{name}`");
        }
        Ok(())
    }
}

/// A component that can be started, stopped and killed by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The database cluster of one service: `<service>-db`.
    Database(String),
    /// The broker: `kafka`.
    Kafka,
    /// The schema registry: `registry`.
    Registry,
    /// The control room: `console`.
    Console,
    /// The worker of Kafka Connect: `connect`.
    Connect,
    /// A stream processor, by its name.
    Streams(String),
    /// One instance of a service: the first has the service's name, the second is `<service>-2`.
    Service {
        /// The name of the service.
        service: String,
        /// Its number, from 1.
        instance: u16,
    },
}

impl Component {
    /// The first instance of a service.
    pub fn service(service: &str) -> Component {
        Component::instance(service, 1)
    }

    /// An instance of a service, counted from 1.
    pub fn instance(service: &str, instance: u16) -> Component {
        Component::Service { service: service.to_string(), instance }
    }
}

impl Display for Component {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Component::Database(service) => write!(out, "{service}-db"),
            Component::Kafka => write!(out, "kafka"),
            Component::Registry => write!(out, "registry"),
            Component::Console => write!(out, "console"),
            Component::Connect => write!(out, "connect"),
            Component::Streams(name) => write!(out, "{name}"),
            Component::Service { service, instance: 1 } => write!(out, "{service}"),
            Component::Service { service, instance } => write!(out, "{service}-{instance}"),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A stack of these services, for the tests of this crate.
    pub(crate) fn describe(services: &[&str]) -> StackDescription {
        StackDescription {
            project: "example".to_string(),
            root: PathBuf::from("/example"),
            services: services.iter().map(|service| service.to_string()).collect(),
            contracts_program: None,
            console: true,
            stream_processors: vec!["sums".to_string()],
            secure: false,
        }
    }

    #[test]
    fn every_component_parses_from_its_displayed_name() {
        let stack = describe(&["a", "b_2", "c"]);
        let streams = Component::Streams("sums".to_string());
        let further = [
            Component::instance("a", 2),
            Component::instance("b_2", 19),
            Component::Connect,
            streams,
        ];
        for component in stack.components() {
            assert_eq!(stack.component(&component.to_string()).unwrap(), component);
            let refusal = stack.component("nothing").unwrap_err().to_string();
            assert!(refusal.contains(&component.to_string()), "{refusal}");
        }
        for component in further {
            assert_eq!(stack.component(&component.to_string()).unwrap(), component);
        }
        assert_eq!(stack.components().len(), 2 * stack.services.len() + 3);
        assert_eq!(stack.infrastructure().len(), stack.services.len() + 2);
        for name in ["", "a-1", "a-", "d-db", "kafka-2", "console-2", "connect-2"] {
            assert!(stack.component(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_name_that_cannot_be_part_of_other_names_is_refused() {
        assert!(describe(&["shop", "shop_2"]).check().is_ok());
        for names in
            [&["a", "b", "a"][..], &["a-b"], &["console"], &["sums"], &["kafka"], &["2nd"], &[""]]
        {
            assert!(describe(names).check().is_err(), "{names:?}");
        }
        assert!(StackDescription { project: "a/b".into(), ..describe(&[]) }.check().is_err());
        assert!(StackDescription { root: "relative".into(), ..describe(&[]) }.check().is_err());
    }
}
