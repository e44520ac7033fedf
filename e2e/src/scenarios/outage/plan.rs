//! The plan of an outage: victims, kills and load.

use std::time::Duration;

use anyhow::Result;
use launcher::Stack;

use crate::console::seconds;
use crate::stack_description::{SERVICES, stack_description};

/// The interval of kills, if instances are the victims.
const INSTANCE_KILL_INTERVAL: Duration = Duration::from_secs(5);

const ALL: &str = "all";

pub const INSTANCES: &str = "instances";

/// An outage.
#[derive(Clone, Debug, clap::Args)]
pub struct OutageOptions {
    /// The victim: a component, `all` (each component, one after the other), or `instances` (two of
    /// each service run, and one of them is killed every five seconds)
    pub victim: String,
    /// Orders a second
    #[arg(long = "rate-per-second", default_value_t = 100)]
    pub rate: u32,
    /// How long orders are placed; 60 if instances are the victims, 90 otherwise
    #[arg(long = "load-seconds", value_parser = seconds)]
    pub load_duration: Option<Duration>,
    /// How often the victim is killed; once in five seconds if instances are the victims, 3 times
    /// otherwise
    #[arg(long)]
    pub kills: Option<u32>,
    /// How long it stays down each time; 2 if instances are the victims, 5 otherwise
    #[arg(long = "down-seconds", value_parser = seconds)]
    pub downtime: Option<Duration>,
}

/// One outage, with every option decided.
#[derive(Clone, Debug)]
pub struct Outage {
    /// Killed in turn.
    pub victims: Vec<String>,
    pub rate: u32,
    pub load_duration: Duration,
    pub kills: u32,
    pub downtime: Duration,
    pub drain_timeout: Duration,
    /// Whether every service has a further instance, and so must always make progress.
    pub is_redundant: bool,
}

impl OutageOptions {
    /// The outages to run, one after the other.
    pub fn plan(&self, stack: &Stack) -> Result<Vec<Outage>> {
        stack_description().require_name(&self.victim)?;
        let rounds = match self.victim.as_str() {
            ALL => stack.description().components().iter().map(|it| vec![it.to_string()]).collect(),
            INSTANCES => {
                // The services in turn, and the instances of each in turn.
                let instances = SERVICES.map(|service| stack.instances_of(service));
                let instances: Vec<Vec<String>> = instances.into_iter().collect::<Result<_>>()?;
                let nth = |nth| instances.iter().filter_map(move |of: &Vec<String>| of.get(nth));
                vec![(0..2).flat_map(nth).cloned().collect()]
            }
            one => vec![vec![stack.description().component(one)?.to_string()]],
        };
        let is_redundant = self.victim == INSTANCES;
        let (load_duration, downtime) = if is_redundant { (60, 2) } else { (90, 5) };
        let load_duration = self.load_duration.unwrap_or(Duration::from_secs(load_duration));
        let often = load_duration.as_secs_f64() / INSTANCE_KILL_INTERVAL.as_secs_f64();
        let kills = self.kills.unwrap_or(if is_redundant { often as u32 } else { 3 });
        let downtime = self.downtime.unwrap_or(Duration::from_secs(downtime));
        let outage = |victims| Outage {
            victims,
            rate: self.rate,
            load_duration,
            kills,
            downtime,
            drain_timeout: Duration::from_secs(60),
            is_redundant,
        };
        Ok(rounds.into_iter().map(outage).collect())
    }
}
