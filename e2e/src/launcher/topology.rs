//! The components of a stack and their names.

use std::fmt::{self, Display};
use std::str::FromStr;

use anyhow::{Result, bail};

pub const HOST: &str = "127.0.0.1";
/// All services. A further one needs its name here and a larger array: its ports, its database and
/// Kafka's listener for it follow from its position.
pub const SERVICES: [&str; 3] = ["order", "payment", "stock"];

/// A component that can be started, stopped and killed by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The database cluster of one service: `<service>-db`.
    Database(String),
    Kafka,
    Registry,
    /// One instance of a service: the first has the service's name, the second is `<service>-2`.
    Service {
        service: String,
        instance: u16,
    },
}

impl Component {
    /// Everything but the services.
    pub fn infrastructure() -> Vec<Component> {
        let databases = SERVICES.map(|service| Component::Database(service.to_string()));
        databases.into_iter().chain([Component::Kafka, Component::Registry]).collect()
    }

    pub fn service(service: &str) -> Component {
        Component::instance(service, 1)
    }

    pub fn instance(service: &str, instance: u16) -> Component {
        Component::Service { service: service.to_string(), instance }
    }

    /// The components of a stack with one instance of each service, services first.
    pub fn all() -> Vec<Component> {
        let (databases, others): (Vec<_>, Vec<_>) = Component::infrastructure()
            .into_iter()
            .partition(|component| matches!(component, Component::Database(_)));
        SERVICES.map(Component::service).into_iter().chain(others).chain(databases).collect()
    }

    /// All names in one line, for messages.
    pub fn names() -> String {
        let mut names: Vec<String> = Component::all().iter().map(Component::to_string).collect();
        let last = names.pop().unwrap_or_default();
        format!("{} or {last}", names.join(", "))
    }
}

impl FromStr for Component {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let (service, rest) = name.split_once('-').unwrap_or((name, ""));
        let known = SERVICES.contains(&service);
        Ok(match (name, rest) {
            ("kafka", _) => Component::Kafka,
            ("registry", _) => Component::Registry,
            (_, "db") if known => Component::Database(service.to_string()),
            (_, "") if known && service == name => Component::service(service),
            (_, number) if known && number.parse::<u16>().is_ok_and(|instance| instance >= 2) => {
                Component::Service { service: service.to_string(), instance: number.parse()? }
            }
            ("", _) => bail!("set SERVICE=… to one of these: {}", Component::names()),
            _ => bail!(
                "there is no `{name}`: choose {} ({}-2 is a second instance)",
                Component::names(),
                SERVICES[0]
            ),
        })
    }
}

impl Display for Component {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Component::Database(service) => write!(out, "{service}-db"),
            Component::Kafka => write!(out, "kafka"),
            Component::Registry => write!(out, "registry"),
            Component::Service { service, instance: 1 } => write!(out, "{service}"),
            Component::Service { service, instance } => write!(out, "{service}-{instance}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_component_parses_from_its_displayed_name() {
        for component in Component::all() {
            assert_eq!(component.to_string().parse::<Component>().unwrap(), component);
            let refusal = "nothing".parse::<Component>().unwrap_err().to_string();
            assert!(refusal.contains(&component.to_string()), "{refusal}");
        }
        assert_eq!(Component::all().len(), 2 * SERVICES.len() + 2);
    }
}
