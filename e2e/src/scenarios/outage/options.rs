//! The options of outages, and each outage with every option decided.

use std::time::Duration;

use anyhow::{Result, ensure};
use launcher::Stack;

use crate::console::seconds;
use crate::stack_description::{SERVICES, stack_description};
use crate::workload::options::Load;

/// The interval of kills, if instances are the victims.
const INSTANCE_KILL_INTERVAL: Duration = Duration::from_secs(5);

const ALL: &str = "all";

pub const INSTANCES: &str = "instances";

/// The load before the kill after which the victim must catch up.
const WARMUP: Duration = Duration::from_secs(10);

/// The share of the outage for which the load then goes on after it. At the slowest drain that passes,
/// half of the outage is enough.
const LOAD_TAIL_RATIO: f64 = 0.6;

/// An outage.
#[derive(Clone, Debug, clap::Args)]
pub struct OutageOptions {
    /// The victim: a component, several that are killed in turn (`a,b`), `all` (each component, one after the other), or
    /// `instances` (two of each service run, and one of them is killed every five seconds)
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
    /// The victim is killed once and must catch up while new orders arrive, and outboxes stay fast
    /// meanwhile; orders are placed for as long as that takes
    #[arg(long, conflicts_with_all = ["load_duration", "kills"])]
    pub catch_up: bool,
}

/// One outage, with every option decided.
#[derive(Clone, Debug)]
pub struct Outage {
    /// Killed in turn.
    pub victims: Vec<String>,
    pub load: Load,
    pub kills: u32,
    pub downtime: Duration,
    /// Whether every service has a further instance, and so must always make progress.
    pub is_redundant: bool,
    /// Whether the backlog must be worked off while new orders arrive, and the outboxes must stay fast.
    pub catches_up: bool,
}

impl Outage {
    /// The usual outage of one component.
    pub fn of(victim: &str) -> Outage {
        Outage {
            victims: vec![victim.to_string()],
            load: Load::default(),
            kills: 3,
            downtime: Duration::from_secs(5),
            is_redundant: false,
            catches_up: false,
        }
    }

    /// The victims, for its report.
    pub fn name(&self) -> String {
        if self.is_redundant { INSTANCES.to_string() } else { self.victims.join(", ") }
    }

    /// When the nth kill is due, at regular intervals. The first one comes after half of its interval, so the load
    /// continues after the last one.
    pub fn kill_time(&self, nth: u32) -> Result<Duration> {
        let every = self.load.duration / self.kills;
        ensure!(self.downtime < every, "{} kills do not fit into the load", self.kills);
        Ok(if self.catches_up { WARMUP } else { every * nth + (every - self.downtime) / 2 })
    }
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
            some => {
                let component = |name| Ok(stack.description().component(name)?.to_string());
                vec![some.split(',').map(component).collect::<Result<_>>()?]
            }
        };
        let is_redundant = self.victim == INSTANCES;
        let (load_duration, downtime) = if is_redundant { (60, 2) } else { (90, 5) };
        let duration = self.load_duration.unwrap_or(Duration::from_secs(load_duration));
        let often = duration.as_secs_f64() / INSTANCE_KILL_INTERVAL.as_secs_f64();
        let mut load = Load { rate: self.rate, duration, ..Load::default() };
        let mut kills = self.kills.unwrap_or(if is_redundant { often as u32 } else { 3 });
        let downtime = self.downtime.unwrap_or(Duration::from_secs(downtime));
        if self.catch_up {
            load.duration = WARMUP + downtime + downtime.mul_f64(LOAD_TAIL_RATIO);
            load.drain_timeout = Duration::from_secs(120);
            kills = 1;
        }
        let catches_up = self.catch_up;
        let outage = |victims| {
            let load = load.clone();
            Outage { victims, load, kills, downtime, is_redundant, catches_up }
        };
        Ok(rounds.into_iter().map(outage).collect())
    }
}
