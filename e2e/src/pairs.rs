//! The nine pairs of a service and something that it depends on, with a proxy between the two of
//! each, so that any one can be cut off alone. No service knows another address than its proxies':
//! Kafka too tells each service's clients to come back that way.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::Stack;
use crate::proxy::Proxy;
use crate::topology::{HOST, SERVICES};

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

/// A service, all its instances, and one thing that it depends on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pair {
    pub service: String,
    pub dependency: Dependency,
}

impl Pair {
    pub fn of(service: &str, dependency: Dependency) -> Pair {
        Pair { service: service.to_string(), dependency }
    }

    pub fn all() -> Vec<Pair> {
        let of = |service| Dependency::ALL.map(|dependency| Pair::of(service, dependency));
        SERVICES.into_iter().flat_map(of).collect()
    }
}

impl Display for Pair {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let to = match self.dependency {
            Dependency::Database => "its database",
            Dependency::Kafka => "Kafka",
            Dependency::Registry => "the registry",
        };
        write!(out, "{} and {to}", self.service)
    }
}

/// The proxies of a stack. They go with this, and nothing works any more until [`take_away`].
pub struct Pairs(BTreeMap<Pair, Proxy>);

impl Pairs {
    /// Puts the proxies between, from the services' and Kafka's next start on.
    pub async fn between(stack: &Stack) -> Result<Pairs> {
        let mut proxies = BTreeMap::new();
        let layout = stack.layout()?;
        for pair in Pair::all() {
            let service = pair.service.as_str();
            let port = match pair.dependency {
                Dependency::Database => layout.of_service(service)?.database,
                Dependency::Kafka => layout.of_service(service)?.kafka,
                Dependency::Registry => layout.ports.registry,
            };
            let proxy = Proxy::to(format!("{HOST}:{port}")).await?;
            let address = proxy.address();
            match pair.dependency {
                Dependency::Database => {
                    let own = layout.database_url(service, service, service)?;
                    let url = own.replace(&format!("{HOST}:{port}"), &address);
                    stack.set_environment(service, DATABASE, Some(&url))?;
                }
                Dependency::Kafka => stack.advertise_kafka(service, Some(&address))?,
                Dependency::Registry => {
                    let own = layout.registry_url();
                    let url = own.replace(&format!("{HOST}:{port}"), &address);
                    stack.set_environment(service, REGISTRY, Some(&url))?;
                }
            }
            proxies.insert(pair, proxy);
        }
        Ok(Pairs(proxies))
    }

    pub fn proxy(&self, service: &str, dependency: Dependency) -> &Proxy {
        &self.0[&Pair::of(service, dependency)]
    }

    pub fn of(&self, pair: &Pair) -> &Proxy {
        &self.0[pair]
    }

    pub fn heal(&self) {
        self.0.values().for_each(Proxy::heal);
    }
}

/// Takes the proxies away, from the services' and Kafka's next start on.
pub fn take_away(stack: &Stack) -> Result<()> {
    for service in SERVICES {
        stack.set_environment(service, DATABASE, None)?;
        stack.set_environment(service, REGISTRY, None)?;
        stack.advertise_kafka(service, None)?;
    }
    Ok(())
}

const DATABASE: &str = "DATABASE_URL";
const REGISTRY: &str = "SCHEMA_REGISTRY_URL";
