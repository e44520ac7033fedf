//! The description of a stack.

use std::path::PathBuf;

use anyhow::{Result, ensure};

/// The address of every component: loopback.
pub const HOST: &str = "127.0.0.1";

/// The name of the worker of Kafka Connect: of its component, of its group and of its user in Kafka.
pub const CONNECT: &str = "connect";

/// Names that a service cannot have, because the stack has another component or program of that
/// name.
const RESERVED_NAMES: [&str; 6] = ["console", "kafka", "registry", CONNECT, "java", "postgres"];

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
    /// The services that a stack has only if it is started with them.
    pub optional_services: Vec<OptionalService>,
    /// Whether a new stack encrypts every connection, and every component knows its clients by name.
    pub secure: bool,
}

/// A service that a stack has only if it is started with it, and keeps then. It calls a system outside, which a program
/// plays: that gets `HTTP_ADDR`, `DIRECTORY`, `WEBHOOK_URL`, `WEBHOOK_SECRET` and in a secured stack `CA_FILE`. The
/// service gets `<SYSTEM>_URL`, `<SYSTEM>_KEY_HOURS` and `<SYSTEM>_WEBHOOK_SECRET`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionalService {
    /// The name of the service.
    pub name: String,
    /// The name of the system outside, and of the program that plays it.
    pub calls: String,
    /// Whether a new stack has it.
    pub is_wanted: bool,
}

/// The position from which the ports of optional services are counted, so that a new service moves none.
const OPTIONAL_POSITION: u16 = 50;

/// The name of an instance of a service, counted from 1: the first has the service's name, the second is
/// `<service>-2`.
pub fn instance_name(service: &str, instance: u16) -> String {
    if instance == 1 { service.to_string() } else { format!("{service}-{instance}") }
}

impl StackDescription {
    /// The services that a stack has which is there, or a new one: the optional ones among them come last.
    pub(crate) fn of_stack(&self, has: impl Fn(&str) -> bool) -> StackDescription {
        let mut description = self.clone();
        let optional = self.optional_services.iter().filter(|it| it.is_wanted || has(&it.name));
        let further = optional.map(|it| it.name.clone());
        description.services.extend(further.filter(|name| !self.services.contains(name)));
        description
    }

    /// The optional services that the stack has.
    pub(crate) fn optional_parts(&self) -> impl Iterator<Item = (&OptionalService, u16)> {
        let optional = self.optional_services.iter().zip(OPTIONAL_POSITION..);
        optional.filter(|(it, _)| self.services.contains(&it.name))
    }

    /// Every service, with its position: its ports follow from it.
    pub(crate) fn positions(&self) -> impl Iterator<Item = (&String, u16)> {
        self.services.iter().zip(1..).map(|(name, position)| {
            let optional = self.optional_parts().find(|(it, _)| it.name == *name);
            (name, optional.map_or(position, |(_, position)| position))
        })
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
                || self.optional_services.iter().any(|it| it.calls == *name)
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
            optional_services: vec![OptionalService {
                name: "extra".to_string(),
                calls: "outside".to_string(),
                is_wanted: false,
            }],
            secure: false,
        }
    }

    #[test]
    fn a_name_that_cannot_be_part_of_other_names_is_refused() {
        assert!(describe(&["shop", "shop_2"]).check().is_ok());
        for names in [
            &["a", "b", "a"][..],
            &["a-b"],
            &["console"],
            &["sums"],
            &["outside"],
            &["kafka"],
            &["2nd"],
            &[""],
        ] {
            assert!(describe(names).check().is_err(), "{names:?}");
        }
        assert!(StackDescription { project: "a/b".into(), ..describe(&[]) }.check().is_err());
        assert!(StackDescription { root: "relative".into(), ..describe(&[]) }.check().is_err());
    }

    #[test]
    fn an_optional_service_comes_last_and_its_ports_are_moved_by_none() {
        let with_extra = |services| describe(services).of_stack(|name| name == "extra");
        assert_eq!(describe(&["a"]).of_stack(|_| false), describe(&["a"]));
        for services in [&["a"][..], &["a", "b"]] {
            let stack = with_extra(services);
            assert_eq!(stack.of_stack(|_| true), stack, "it has it once");
            let positions: Vec<(&String, u16)> = stack.positions().collect();
            assert_eq!(positions[0], (&"a".to_string(), 1));
            assert_eq!(positions.last(), Some(&(&"extra".to_string(), OPTIONAL_POSITION)));
        }
    }
}
