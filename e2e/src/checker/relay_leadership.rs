//! Relay leadership (I9): of the instances of a service at most one has an active relay, by its
//! metrics. It is observed during the load of a mutant trial, and during the check of a chaos
//! round, when all faults are healed. In a run without faults there may be no duplicate either.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use launcher::Stack;
use tokio::time::sleep;

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::I9;
use crate::checker::tally::Tally;
use crate::client::http_client::Client;
use crate::metrics::Metrics;
use crate::stack_description::SERVICES;

const POLL_INTERVAL: Duration = Duration::from_millis(500);

/// The instances are read one after the other, and leadership may change between two reads. So only
/// consecutive observations count.
const CONSECUTIVE_MIN: u32 = 3;

/// The longest streak of observations with several active relays, by service.
#[derive(Debug, Default)]
pub struct RelayLeadership {
    streaks: BTreeMap<&'static str, (u32, u32)>,
}

impl RelayLeadership {
    /// Observes the relays until the future is dropped.
    pub async fn watch(&mut self, stack: &Stack, client: &Client) -> Result<()> {
        loop {
            for service in SERVICES {
                let active = active_relays(stack, client, service).await?;
                self.observe(service, active);
            }
            sleep(POLL_INTERVAL).await;
        }
    }

    pub fn observe(&mut self, service: &'static str, active: usize) {
        let (in_a_row, most) = self.streaks.entry(service).or_default();
        *in_a_row = if active > 1 { *in_a_row + 1 } else { 0 };
        *most = (*most).max(*in_a_row);
    }

    pub fn check(&self, findings: &mut Findings) {
        for (service, (_, observations)) in &self.streaks {
            findings.unless(*observations < CONSECUTIVE_MIN, I9, "leaders", || {
                format!("several relays of {service} were active in {observations} consecutive observations")
            });
        }
    }
}

/// The number of active relays of a service. An instance that does not answer counts as inactive.
pub async fn active_relays(stack: &Stack, client: &Client, service: &str) -> Result<usize> {
    let mut active = 0;
    for name in stack.instances_of(service)? {
        active += usize::from(is_active_relay(stack, client, &name).await);
    }
    Ok(active)
}

/// Whether the metrics of an instance show an active relay.
pub async fn is_active_relay(stack: &Stack, client: &Client, name: &str) -> bool {
    let metrics = Metrics::fetch(stack, client, name).await;
    metrics.is_ok_and(|metrics| metrics.sum("relay_active") == Some(1.0))
}

/// In a run without faults there is no duplicate: an acknowledged row is deleted and not sent
/// again.
pub fn check_no_duplicates(tally: &Tally, findings: &mut Findings) {
    findings.unless(tally.duplicates == 0, I9, "duplicates", || {
        format!("{} duplicate records in a run without faults", tally.duplicates)
    });
}
