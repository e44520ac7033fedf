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
    /// Whether a new stack encrypts every connection, and every component knows its clients by name.
    pub secure: bool,
}

/// The name of an instance of a service, counted from 1: the first has the service's name, the second is
/// `<service>-2`.
pub fn instance_name(service: &str, instance: u16) -> String {
    if instance == 1 { service.to_string() } else { format!("{service}-{instance}") }
}

impl StackDescription {
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
