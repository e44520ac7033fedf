//! What the stack consists of, and all that it remembers between two commands.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::ports::{InstancePorts, Ports, ServicePorts};

pub const HOST: &str = "127.0.0.1";
/// All services there are. A further one is one more name here, and one more to their number: its
/// ports, its database and Kafka's listener for it follow from its place.
pub const SERVICES: [&str; 3] = ["order", "payment", "stock"];

/// Whatever can be started, stopped and killed by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// The cluster of one service: `order-db`.
    Database(String),
    Kafka,
    Registry,
    /// One instance of a service: `order`, or `order-2`.
    Service {
        service: String,
        instance: u16,
    },
}

impl Member {
    /// The parts: everything but the services.
    pub fn parts() -> Vec<Member> {
        let databases = SERVICES.map(|service| Member::Database(service.to_string()));
        databases.into_iter().chain([Member::Kafka, Member::Registry]).collect()
    }

    pub fn service(service: &str) -> Member {
        Member::instance(service, 1)
    }

    pub fn instance(service: &str, instance: u16) -> Member {
        Member::Service { service: service.to_string(), instance }
    }

    /// What a stack of one instance a service consists of, services first.
    pub fn all() -> Vec<Member> {
        let (databases, others): (Vec<_>, Vec<_>) =
            Member::parts().into_iter().partition(|part| matches!(part, Member::Database(_)));
        SERVICES.map(Member::service).into_iter().chain(others).chain(databases).collect()
    }

    /// `order, payment, … or stock-db`, for people.
    pub fn names() -> String {
        let mut names: Vec<String> = Member::all().iter().map(Member::to_string).collect();
        let last = names.pop().unwrap_or_default();
        format!("{} or {last}", names.join(", "))
    }
}

impl FromStr for Member {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        let (service, rest) = name.split_once('-').unwrap_or((name, ""));
        let known = SERVICES.contains(&service);
        Ok(match (name, rest) {
            ("kafka", _) => Member::Kafka,
            ("registry", _) => Member::Registry,
            (_, "db") if known => Member::Database(service.to_string()),
            (_, "") if known && service == name => Member::service(service),
            (_, number) if known && number.parse::<u16>().is_ok_and(|instance| instance >= 2) => {
                Member::Service { service: service.to_string(), instance: number.parse()? }
            }
            ("", _) => bail!("name one by SERVICE=…: {}", Member::names()),
            _ => bail!(
                "there is no `{name}`: say {} ({}-2 is a second instance)",
                Member::names(),
                SERVICES[0]
            ),
        })
    }
}

impl Display for Member {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Member::Database(service) => write!(out, "{service}-db"),
            Member::Kafka => write!(out, "kafka"),
            Member::Registry => write!(out, "registry"),
            Member::Service { service, instance: 1 } => write!(out, "{service}"),
            Member::Service { service, instance } => write!(out, "{service}-{instance}"),
        }
    }
}

/// All that a stack remembers between two commands, beside its data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Layout {
    pub ports: Ports,
    /// Marks the Kafka cluster as this stack's. A stack that was made before there was one has none.
    #[serde(default)]
    pub name: Option<String>,
    /// Further instances of services, by name.
    pub instances: BTreeMap<String, InstancePorts>,
    /// Where Kafka tells a service's clients to find it, if not at its own listener.
    pub kafka_advertised: BTreeMap<String, String>,
    /// Extra environment, by name of service or of instance.
    pub environment: BTreeMap<String, BTreeMap<String, String>>,
    /// Where the program is, by name of instance, if it is another version than the others'.
    #[serde(default)]
    pub programs: BTreeMap<String, PathBuf>,
    /// How many brokers keep each record, if more than the one; see [`crate::brokers`].
    #[serde(default)]
    pub replication_factor: Option<u16>,
    /// What the databases want to hear from whom they do not know; natively they ask nobody.
    #[serde(skip)]
    pub database_password: Option<String>,
}

impl Layout {
    /// A layout that was written down before a service was added, or taken away.
    pub fn of_today(mut self) -> Self {
        self.ports.services.retain(|service, _| SERVICES.contains(&service.as_str()));
        for (service, ports) in Ports::default().services {
            self.ports.services.entry(service).or_insert(ports);
        }
        self
    }

    pub fn members(&self) -> Vec<Member> {
        let first = SERVICES.map(Member::service);
        let further = self.instances.keys().filter_map(|name| name.parse().ok());
        Member::parts().into_iter().chain(first).chain(further).collect()
    }

    pub fn of_service(&self, service: &str) -> Result<&ServicePorts> {
        self.ports.services.get(service).with_context(|| format!("there is no service `{service}`"))
    }

    pub fn of_instance(&self, name: &str) -> Result<&InstancePorts> {
        let further = self.instances.get(name);
        further
            .or_else(|| self.ports.services.get(name).map(|ports| &ports.first))
            .with_context(|| format!("there is no instance `{name}`"))
    }

    /// The names of a service's instances, the first one first.
    pub fn instances_of(&self, service: &str) -> Vec<String> {
        let further = self.instances.keys().filter_map(|name| name.parse::<Member>().ok());
        let mut numbers: Vec<u16> = further
            .filter_map(|member| match member {
                Member::Service { service: of, instance } if of == service => Some(instance),
                _ => None,
            })
            .collect();
        numbers.sort_unstable();
        let instances = [1].into_iter().chain(numbers);
        instances.map(|instance| Member::instance(service, instance).to_string()).collect()
    }

    /// The ports that a further instance will have.
    pub fn ports_for(&self, member: &Member) -> Result<InstancePorts> {
        let Member::Service { service, instance } = member else {
            bail!("there is one {member} only");
        };
        InstancePorts::of_further(&self.of_service(service)?.first, *instance)
    }

    /// The ports that a member listens on, each with the variable that moves it.
    pub fn listens_on(&self, member: &Member) -> Result<Vec<(u16, Option<String>)>> {
        let moved_by = |port: u16| {
            let mut ports = self.ports.clone();
            let mut settings = ports.settings().into_iter();
            let setting = settings.find(|(_, set)| **set == port).map(|(variable, _)| variable);
            (port, setting)
        };
        let ports = match member {
            Member::Database(service) => vec![self.of_service(service)?.database],
            Member::Registry => vec![self.ports.registry],
            Member::Kafka => {
                let listeners = self.ports.services.values().map(|ports| ports.kafka);
                [self.ports.kafka, self.ports.kafka_controller]
                    .into_iter()
                    .chain(listeners)
                    .collect()
            }
            Member::Service { .. } => {
                let ports = self.of_instance(&member.to_string())?;
                vec![ports.api, ports.probe, ports.operator]
            }
        };
        Ok(ports.into_iter().map(moved_by).collect())
    }

    /// Kafka's address for one service.
    pub fn kafka_of(&self, service: &str) -> Result<String> {
        let own = format!("{HOST}:{}", self.of_service(service)?.kafka);
        Ok(self.kafka_advertised.get(service).cloned().unwrap_or(own))
    }

    /// As which stack it claims its Kafka cluster.
    pub fn stack_name(&self) -> String {
        self.name.clone().unwrap_or_else(|| "holdfast".to_string())
    }

    pub fn registry_url(&self) -> String {
        format!("http://{HOST}:{}/apis/ccompat/v7", self.ports.registry)
    }

    pub fn database_url(&self, service: &str, role: &str, database: &str) -> Result<String> {
        let port = self.of_service(service)?.database;
        let password = self.database_password.as_ref();
        let password = password.map_or(String::new(), |password| format!(":{password}"));
        Ok(format!("postgres://{role}{password}@{HOST}:{port}/{database}"))
    }

    /// The environment of one instance: its addresses, then what was set for its service, then what
    /// was set for itself.
    pub fn environment_of(&self, member: &Member) -> Result<Vec<(String, String)>> {
        let name = member.to_string();
        let Member::Service { service, .. } = member else {
            return Ok(self
                .environment
                .get(&name)
                .cloned()
                .unwrap_or_default()
                .into_iter()
                .collect());
        };
        let ports = self.of_instance(&name)?;
        let at = |port: u16| format!("{HOST}:{port}");
        let mut environment = BTreeMap::from(
            [
                ("DATABASE_URL", self.database_url(service, service, service)?),
                (
                    "MIGRATION_DATABASE_URL",
                    self.database_url(service, &format!("{service}_migrator"), service)?,
                ),
                ("HTTP_ADDR", at(ports.api)),
                ("PROBE_ADDR", at(ports.probe)),
                ("OPERATOR_ADDR", at(ports.operator)),
                ("KAFKA_BOOTSTRAP_SERVERS", self.kafka_of(service)?),
                ("SCHEMA_REGISTRY_URL", self.registry_url()),
            ]
            .map(|(key, value)| (key.to_string(), value)),
        );
        for name in [service, &name] {
            environment.extend(self.environment.get(name).cloned().unwrap_or_default());
        }
        Ok(environment.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_that_is_older_than_a_service_is_given_its_ports() {
        let mut older = Layout::default();
        let taken_away = older.ports.services.remove(SERVICES[2]).unwrap();
        older.ports.services.insert("retired".to_string(), taken_away);
        assert_eq!(older.of_today(), Layout::default());
    }

    #[test]
    fn every_member_is_found_by_the_name_that_people_are_told() {
        for member in Member::all() {
            assert_eq!(member.to_string().parse::<Member>().unwrap(), member);
            let refusal = "nothing".parse::<Member>().unwrap_err().to_string();
            assert!(refusal.contains(&member.to_string()), "{refusal}");
        }
        assert_eq!(Member::all().len(), 2 * SERVICES.len() + 2);
    }
}
