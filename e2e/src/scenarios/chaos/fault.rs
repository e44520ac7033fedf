//! A fault of a chaos run: its class, its victim and its time. Faults know the services of the shop, so they do not
//! belong to `faults`.

use std::collections::BTreeSet;
use std::fmt::{self, Debug, Display};
use std::ops::Range;
use std::time::Duration;

use anyhow::Result;
use faults::links::{Dependency, Link, Links};
use futures::future::LocalBoxFuture;
use launcher::{Stack, instance_name};
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

use crate::checker::coverage::Situation;
use crate::client::http_client::Client;
use crate::stack_description::SERVICES;

/// Injects faults into a running stack with a proxy on each link: `inject.rs`.
pub struct Injector<'a> {
    pub stack: &'a Stack,
    pub client: &'a Client,
    pub links: &'a Links,
}

/// Injects a fault, and ends it again. Returns how much was affected.
pub type Inject = for<'a> fn(&'a Injector<'a>, &'a Fault) -> Injection<'a>;

pub type Injection<'a> = LocalBoxFuture<'a, Result<u64>>;

/// A class of faults. `classes.rs` has the table of them.
pub struct FaultClass {
    /// Its number in the fault matrix of docs/testing.md.
    pub number: &'static str,
    pub description: &'static str,
    /// Its duration, in tenths of a second.
    pub duration: Range<u64>,
    pub victims: Victims,
    pub inject: Inject,
    /// Its share of all kills, in percent; 0 if it is no kill.
    pub kill_percent: u32,
    /// What else no other fault may touch at the same time.
    pub also_touches: &'static [&'static str],
    /// The situation that no other class brings about.
    pub causes: Option<Situation>,
}

/// The possible victims of a class.
#[derive(Clone, Copy)]
pub enum Victims {
    Instances,
    /// The next instance of a service, which does not run yet.
    FurtherInstances,
    Databases,
    Only(&'static str),
    /// All instances of a service.
    Services,
    OnlyService(&'static str),
    Links,
    DatabaseLinks,
}

impl Victims {
    /// The names of the victims.
    pub fn names(self, instances: u16) -> Vec<String> {
        let instance = |service, nth| instance_name(service, nth);
        match self {
            Victims::Instances => {
                let of = |service| (1..=instances).map(move |nth| instance(service, nth));
                SERVICES.into_iter().flat_map(of).collect()
            }
            Victims::FurtherInstances => SERVICES.map(|it| instance(it, instances + 1)).to_vec(),
            Victims::Databases => SERVICES.map(|service| format!("{service}-db")).to_vec(),
            Victims::Services => SERVICES.map(String::from).to_vec(),
            Victims::Only(name) | Victims::OnlyService(name) => vec![name.to_string()],
            Victims::Links => Link::all(&SERVICES).iter().map(Link::to_string).collect(),
            Victims::DatabaseLinks => {
                SERVICES.map(|it| Link::new(it, Dependency::Database).to_string()).to_vec()
            }
        }
    }
}

impl FaultClass {
    pub fn is_kill(&self) -> bool {
        self.kill_percent > 0
    }
}

impl PartialEq for FaultClass {
    fn eq(&self, other: &FaultClass) -> bool {
        self.description == other.description
    }
}

impl Debug for FaultClass {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{}", self.description)
    }
}

/// One fault of a round.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    pub class: &'static FaultClass,
    /// The name of a component, of a service with all its instances, or of a link.
    pub victim: String,
    /// Since the beginning of the load.
    pub at: Duration,
    pub duration: Duration,
    /// The seed of its own draws.
    pub seed: u64,
}

impl Fault {
    pub fn rng(&self) -> StdRng {
        StdRng::seed_from_u64(self.seed)
    }

    /// The service that is the victim, or whose database is. No service has the empty name.
    pub fn service(&self) -> &'static str {
        let name = self.victim.strip_suffix("-db").unwrap_or(&self.victim);
        SERVICES.into_iter().find(|service| *service == name).unwrap_or_default()
    }

    /// The resources that no other fault may touch at the same time, in order.
    pub fn exclusive_resources(&self, instances: u16) -> BTreeSet<String> {
        let also = self.class.also_touches.iter().map(|name| name.to_string());
        match self.class.victims {
            // Including further instances: one of them may just be joining.
            Victims::Services | Victims::OnlyService(_) => {
                let nth = |nth| instance_name(&self.victim, nth);
                also.chain((1..=instances + 1).map(nth)).collect()
            }
            _ => also.chain([self.victim.clone()]).collect(),
        }
    }
}

impl Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{:<4} {}: {}", self.class.number, self.class.description, self.victim)
    }
}
