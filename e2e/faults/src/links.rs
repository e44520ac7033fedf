//! The links between each service and each of its dependencies, with a proxy on each, so that one
//! link can be cut alone. A service only knows the addresses of its proxies: Kafka also advertises
//! them to its clients.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use anyhow::Result;
use launcher::{HOST, Stack};
use serde::{Deserialize, Serialize};

use crate::faulty_network::Proxy;

/// What a service depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Dependency {
    /// Its own database.
    Database,
    /// Its listener of Kafka.
    Kafka,
    /// The schema registry.
    Registry,
}

impl Dependency {
    /// Every dependency once.
    pub const ALL: [Dependency; 3] =
        [Dependency::Database, Dependency::Kafka, Dependency::Registry];
}

/// A service, with all its instances, and one of its dependencies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Link {
    /// The name of the service.
    pub service: String,
    /// The other end.
    pub dependency: Dependency,
}

impl Link {
    /// The link between a service and one of its dependencies.
    pub fn new(service: &str, dependency: Dependency) -> Link {
        Link { service: service.to_string(), dependency }
    }

    /// Every link of these services.
    pub fn all<S: AsRef<str>>(services: &[S]) -> Vec<Link> {
        let of =
            |service: &S| Dependency::ALL.map(|dependency| Link::new(service.as_ref(), dependency));
        services.iter().flat_map(of).collect()
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
        let ports = stack.ports()?;
        for link in Link::all(&stack.description().services) {
            let service = link.service.as_str();
            let port = match link.dependency {
                Dependency::Database => ports.get(&format!("{service}-db"))?,
                Dependency::Kafka => ports.get(&format!("{service}-kafka"))?,
                Dependency::Registry => ports.get("registry")?,
            };
            let own = format!("{HOST}:{port}");
            let proxy = Proxy::start(own.clone()).await?;
            let address = proxy.address();
            match link.dependency {
                Dependency::Database => {
                    let url = stack.service_database_url(service)?.replace(&own, &address);
                    stack.set_environment(service, DATABASE_VARIABLE, Some(&url))?;
                }
                Dependency::Kafka => stack.advertise_kafka(service, Some(&address))?,
                Dependency::Registry => {
                    let url = stack.registry_url()?.replace(&own, &address);
                    stack.set_environment(service, REGISTRY_VARIABLE, Some(&url))?;
                }
            }
            proxies.insert(link, proxy);
        }
        Ok(Links(proxies))
    }

    /// The proxy between a service and a dependency.
    ///
    /// # Panics
    /// If the stack has no such service.
    pub fn proxy(&self, service: &str, dependency: Dependency) -> &Proxy {
        &self.0[&Link::new(service, dependency)]
    }

    /// The proxy on a link.
    ///
    /// # Panics
    /// If the stack has no such service.
    pub fn get(&self, link: &Link) -> &Proxy {
        &self.0[link]
    }

    /// Removes the toxics of every proxy.
    pub fn heal(&self) {
        self.0.values().for_each(Proxy::heal);
    }
}

/// Removes the proxies, from the services' and Kafka's next start on.
pub fn remove(stack: &Stack) -> Result<()> {
    for service in &stack.description().services {
        stack.set_environment(service, DATABASE_VARIABLE, None)?;
        stack.set_environment(service, REGISTRY_VARIABLE, None)?;
        stack.advertise_kafka(service, None)?;
    }
    Ok(())
}

const DATABASE_VARIABLE: &str = "DATABASE_URL";
const REGISTRY_VARIABLE: &str = "SCHEMA_REGISTRY_URL";
