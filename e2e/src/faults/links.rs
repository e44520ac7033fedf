//! The links between each service and each of its dependencies, with a proxy on each, so that one
//! link can be cut alone. A service only knows the addresses of its proxies: Kafka also advertises
//! them to its clients.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::Stack;
use crate::faults::faulty_network::Proxy;
use crate::launcher::topology::{HOST, SERVICES};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Dependency {
    Database,
    Kafka,
    Registry,
}

impl Dependency {
    pub const ALL: [Dependency; 3] =
        [Dependency::Database, Dependency::Kafka, Dependency::Registry];
}

/// A service, with all its instances, and one of its dependencies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Link {
    pub service: String,
    pub dependency: Dependency,
}

impl Link {
    pub fn new(service: &str, dependency: Dependency) -> Link {
        Link { service: service.to_string(), dependency }
    }

    pub fn all() -> Vec<Link> {
        let of = |service| Dependency::ALL.map(|dependency| Link::new(service, dependency));
        SERVICES.into_iter().flat_map(of).collect()
    }
}

impl Display for Link {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let to = match self.dependency {
            Dependency::Database => "its database",
            Dependency::Kafka => "Kafka",
            Dependency::Registry => "the registry",
        };
        write!(out, "{} and {to}", self.service)
    }
}

/// The proxies of a stack. When they are dropped, the stack cannot work until [`remove`].
pub struct Links(BTreeMap<Link, Proxy>);

impl Links {
    /// Inserts the proxies, from the services' and Kafka's next start on.
    pub async fn install(stack: &Stack) -> Result<Links> {
        let mut proxies = BTreeMap::new();
        let stack_state = stack.state()?;
        for link in Link::all() {
            let service = link.service.as_str();
            let port = match link.dependency {
                Dependency::Database => stack_state.service_ports(service)?.database,
                Dependency::Kafka => stack_state.service_ports(service)?.kafka,
                Dependency::Registry => stack_state.ports.registry,
            };
            let proxy = Proxy::start(format!("{HOST}:{port}")).await?;
            let address = proxy.address();
            match link.dependency {
                Dependency::Database => {
                    let own = stack_state.database_url(service, service, service)?;
                    let url = own.replace(&format!("{HOST}:{port}"), &address);
                    stack.set_environment(service, DATABASE_VARIABLE, Some(&url))?;
                }
                Dependency::Kafka => stack.advertise_kafka(service, Some(&address))?,
                Dependency::Registry => {
                    let own = stack_state.registry_url();
                    let url = own.replace(&format!("{HOST}:{port}"), &address);
                    stack.set_environment(service, REGISTRY_VARIABLE, Some(&url))?;
                }
            }
            proxies.insert(link, proxy);
        }
        Ok(Links(proxies))
    }

    pub fn proxy(&self, service: &str, dependency: Dependency) -> &Proxy {
        &self.0[&Link::new(service, dependency)]
    }

    pub fn get(&self, link: &Link) -> &Proxy {
        &self.0[link]
    }

    pub fn heal(&self) {
        self.0.values().for_each(Proxy::heal);
    }
}

/// Removes the proxies, from the services' and Kafka's next start on.
pub fn remove(stack: &Stack) -> Result<()> {
    for service in SERVICES {
        stack.set_environment(service, DATABASE_VARIABLE, None)?;
        stack.set_environment(service, REGISTRY_VARIABLE, None)?;
        stack.advertise_kafka(service, None)?;
    }
    Ok(())
}

const DATABASE_VARIABLE: &str = "DATABASE_URL";
const REGISTRY_VARIABLE: &str = "SCHEMA_REGISTRY_URL";
