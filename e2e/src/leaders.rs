//! Who relays: of the instances of a service one does, by their own word. Looked at while the load of a
//! trial lasts, and in a chaos run while the checker is at work, when all faults are over; and where
//! nothing is broken, nothing may come a second time either.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use tokio::time::sleep;

use crate::Stack;
use crate::checks::Tally;
use crate::client::Client;
use crate::findings::Findings;
use crate::invariants::Invariant::I9;
use crate::metrics::Metrics;
use crate::topology::SERVICES;

const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The instances are asked one after the other, and a lock may change hands between two answers:
/// only what is seen so many times in a row is so.
const LOOKS_MIN: u32 = 3;

/// How many relays are active, by service, and how often in a row there were several.
#[derive(Debug, Default)]
pub struct Leaders {
    several: BTreeMap<&'static str, (u32, u32)>,
}

impl Leaders {
    /// Looks for as long as it is polled.
    pub async fn watch(&mut self, stack: &Stack, client: &Client) -> Result<()> {
        loop {
            for service in SERVICES {
                let active = active_relays(stack, client, service).await?;
                self.saw(service, active);
            }
            sleep(LOOK_EVERY).await;
        }
    }

    pub fn saw(&mut self, service: &'static str, active: usize) {
        let (in_a_row, most) = self.several.entry(service).or_default();
        *in_a_row = if active > 1 { *in_a_row + 1 } else { 0 };
        *most = (*most).max(*in_a_row);
    }

    pub fn check(&self, findings: &mut Findings) {
        for (service, (_, looks)) in &self.several {
            findings.unless(*looks < LOOKS_MIN, I9, "leaders", || {
                format!("several relays of {service} were active, {looks} looks in a row")
            });
        }
    }
}

/// How many relays of a service say that they are active. Who does not answer relays nothing, or not
/// for long.
pub async fn active_relays(stack: &Stack, client: &Client, service: &str) -> Result<usize> {
    let mut active = 0;
    for name in stack.instances_of(service)? {
        active += usize::from(is_relaying(stack, client, &name).await);
    }
    Ok(active)
}

/// Whether an instance says that its relay is active.
pub async fn is_relaying(stack: &Stack, client: &Client, name: &str) -> bool {
    let metrics = Metrics::of(stack, client, name).await;
    metrics.is_ok_and(|metrics| metrics.sum("relay_active") == Some(1.0))
}

/// Of a run in which nothing was broken: what was acknowledged is deleted, so nothing is sent twice.
pub fn check_undisturbed(tally: &Tally, findings: &mut Findings) {
    findings.unless(tally.repeats == 0, I9, "repeats", || {
        format!("{} records lie there twice, and nobody had broken anything", tally.repeats)
    });
}
