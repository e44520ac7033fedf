//! The nemesis runs a schedule of faults on a running stack, heals each, and records the time and
//! the effect of each. Faults overlap, except two that touch the same process.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use chrono::{DateTime, Utc};
use faults::links::Links;
use futures::future::join_all;
use launcher::Stack;
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep_until, timeout};

use crate::client::http_client::Client;
use crate::console::print_line;
use crate::scenarios::chaos::fault::{Fault, Injector};
use crate::scenarios::chaos::inject::NotRecovered;
use crate::scenarios::order_faults::{self, replay_dead_letters};

/// How long a fault and its healing may take beyond its duration: a process has to start while
/// other faults go on.
const HEAL_TIMEOUT: Duration = Duration::from_secs(150);

/// Runs the faults of a round.
pub struct Nemesis<'a> {
    injector: Injector<'a>,
    instances: u16,
    locks: BTreeMap<String, Mutex<()>>,
}

/// The record of a fault.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FaultRecord {
    pub fault: Fault,
    /// Since the beginning of the load: later than planned if it waited for another fault.
    pub at: Duration,
    pub began: DateTime<Utc>,
    pub ended: DateTime<Utc>,
    pub result: FaultResult,
    /// How many orders were pending during it.
    pub orders_in_flight: i64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum FaultResult {
    /// How much it affected: processes, sessions, records, or messages on a link.
    Affected(u64),
    /// What was wrong afterwards.
    Violated(String),
    /// Why it could not be injected. Then it does not count.
    Failed(String),
    /// It came too late for this round, because earlier faults took so long.
    Skipped,
}

impl FaultRecord {
    /// Whether it was injected.
    pub fn was_injected(&self) -> bool {
        matches!(self.result, FaultResult::Affected(_) | FaultResult::Violated(_))
    }

    pub fn had_effect(&self) -> bool {
        matches!(self.result, FaultResult::Affected(1..))
    }
}

impl<'a> Nemesis<'a> {
    pub fn new(
        stack: &'a Stack,
        client: &'a Client,
        links: &'a Links,
        instances: u16,
        faults: &[Fault],
    ) -> Nemesis<'a> {
        let resources = faults.iter().flat_map(|fault| fault.exclusive_resources(instances));
        let locks = resources.map(|name| (name, Mutex::new(()))).collect();
        Nemesis { injector: Injector { stack, client, links }, instances, locks }
    }

    /// Runs all faults of a schedule, each at its time. Faults later than `last` are skipped.
    pub async fn run(&self, faults: &[Fault], last: Duration) -> Vec<FaultRecord> {
        let began = Instant::now();
        join_all(faults.iter().map(|fault| self.inject(fault, began, began + last))).await
    }

    async fn inject(&self, fault: &Fault, round: Instant, last: Instant) -> FaultRecord {
        sleep_until(round + fault.at).await;
        let _touched = self.lock_resources(fault).await;
        let (began, at) = (Utc::now(), round.elapsed());
        let seconds = |at: Duration| format!("{:>6.1} s ", at.as_secs_f64());
        let result = if Instant::now() > last {
            FaultResult::Skipped
        } else {
            let lasting = fault.duration.as_secs_f64();
            print_line(&format!("{} {fault}, for {lasting:.1} s", seconds(at)));
            self.apply(fault).await
        };
        if let FaultResult::Violated(problem) | FaultResult::Failed(problem) = &result {
            print_line(&format!("{} FAILED  {fault}: {problem}", seconds(round.elapsed())));
        }
        let (fault, ended) = (fault.clone(), Utc::now());
        FaultRecord { fault, at, began, ended, result, orders_in_flight: 0 }
    }

    async fn apply(&self, fault: &Fault) -> FaultResult {
        match timeout(fault.duration + HEAL_TIMEOUT, (fault.class.inject)(&self.injector, fault))
            .await
        {
            Ok(Ok(affected)) => FaultResult::Affected(affected),
            Ok(Err(error)) if error.downcast_ref::<NotRecovered>().is_some() => {
                FaultResult::Violated(format!("{error:#}"))
            }
            Ok(Err(error)) => FaultResult::Failed(format!("{error:#}")),
            Err(_) => FaultResult::Violated(format!("not healed within {HEAL_TIMEOUT:?}")),
        }
    }

    /// In order of their names, so that two faults cannot deadlock.
    async fn lock_resources(&self, fault: &Fault) -> Vec<MutexGuard<'_, ()>> {
        let mut guards = Vec::new();
        for name in fault.exclusive_resources(self.instances) {
            if let Some(lock) = self.locks.get(&name) {
                guards.push(lock.lock().await);
            }
        }
        guards
    }

    /// Ends the rest of every fault: every process runs, none is paused, every link is open.
    pub async fn heal_all(&self) -> Result<()> {
        let Injector { stack, client, links } = self.injector;
        links.heal();
        stack.set_instances(self.instances).await?;
        order_faults::repair_all(stack).await?;
        stack.up().await?;
        client.refresh_instances(stack)?;
        replay_dead_letters(stack, "payment").await
    }
}
