//! The injector: what several classes of faults do to a stack, or what takes more than a few lines.

use std::fmt::{self, Display};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use faults::database_faults;
use faults::faulty_network::Toxics;
use faults::links::Link;
use launcher::eventually;
use tokio::time::sleep;

use super::fault::{Fault, Injection, Injector};
use crate::client::order::LineRequest;
use crate::scenarios::order_faults::{self, A_SEVENTH, DEADLINE_VARIABLE};
use crate::scenarios::{poison, redelivery};
use crate::stack_description::SERVICES;
use crate::workload::seed;

/// How long the stack may take to reach an expected state after a fault.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How much longer a fault may last until it has an effect.
const EFFECT_TIMEOUT: Duration = Duration::from_secs(25);

/// Marks an error that is a violation, not a failure of the injection.
#[derive(Debug)]
pub struct NotRecovered;

impl Display for NotRecovered {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "it did not stop or restart as it must")
    }
}

/// What affects one victim, which was running, or it would have failed.
pub fn one<'a>(change: impl Future<Output = Result<()>> + 'a) -> Injection<'a> {
    Box::pin(async { change.await.map(|()| 1) })
}

impl<'a> Injector<'a> {
    /// Ends the process of the victim, and starts it again after the duration.
    pub fn end(
        &'a self,
        fault: &'a Fault,
        ending: impl Future<Output = Result<()>> + 'a,
    ) -> Injection<'a> {
        one(async move {
            ending.await?;
            sleep(fault.duration).await;
            self.start(&fault.victim).await
        })
    }

    pub async fn kill(&self, fault: &Fault) -> Result<()> {
        let name = &fault.victim;
        ensure!(self.stack.kill(name).await?, "{name} had exited before it was killed");
        Ok(())
    }

    pub async fn pause(&self, fault: &Fault) -> Result<()> {
        self.stack.pause(&fault.victim).await?;
        sleep(fault.duration).await;
        self.stack.resume(&fault.victim).await
    }

    pub async fn stop(&self, name: &str) -> Result<()> {
        self.stack.stop_gracefully(name).await.map(drop).context(NotRecovered)
    }

    async fn start(&self, name: &str) -> Result<()> {
        self.stack.start(name).await.context(NotRecovered)
    }

    pub async fn join_and_leave(&self, fault: &Fault) -> Result<()> {
        self.stack.start(&fault.victim).await?;
        self.client.refresh_instances(self.stack)?;
        sleep(fault.duration).await;
        self.stop(&fault.victim).await?;
        self.stack.remove(&fault.victim).await?;
        self.client.refresh_instances(self.stack)
    }

    /// Disturbs a link for the duration.
    pub fn disturb(&'a self, fault: &'a Fault, toxics: Toxics) -> Injection<'a> {
        Box::pin(self.disturb_link(fault, toxics, false))
    }

    /// The same, and resets its connections at the beginning.
    pub fn disturb_and_reset(&'a self, fault: &'a Fault, toxics: Toxics) -> Injection<'a> {
        Box::pin(self.disturb_link(fault, toxics, true))
    }

    async fn disturb_link(&self, fault: &Fault, toxics: Toxics, resets: bool) -> Result<u64> {
        let mut links = Link::all(&SERVICES).into_iter();
        let link = links.find(|link| link.to_string() == fault.victim).context("a link")?;
        let proxy = self.links.get(&link);
        let before = proxy.affected();
        proxy.set_toxics(toxics);
        if resets {
            proxy.reset_connections();
        }
        sleep(fault.duration).await;
        proxy.heal();
        Ok(proxy.affected() - before)
    }

    pub async fn make_read_only(&self, fault: &Fault) -> Result<()> {
        database_faults::set_read_only(self.stack, fault.service(), true).await?;
        sleep(fault.duration).await;
        database_faults::set_read_only(self.stack, fault.service(), false).await
    }

    /// Changes the offsets of a service while it is stopped. Returns how many records it reads
    /// again.
    pub async fn change_offsets(
        &self,
        service: &'static str,
        change: impl AsyncFnMut() -> Result<()>,
    ) -> Result<u64> {
        for name in self.stack.instances_of(service)? {
            self.stop(&name).await?;
        }
        // A killed instance stays a member of the group until its session expires.
        eventually("the group to have no member", SETTLE_TIMEOUT, change).await?;
        let reread = redelivery::consumer_lag(self.client, service).await?;
        for name in self.stack.instances_of(service)? {
            self.start(&name).await?;
        }
        Ok(u64::try_from(reread)?)
    }

    pub async fn poison(&self, fault: &Fault) -> Result<u64> {
        let positions = poison::poison_all_topics(self.client, false, &mut fault.rng()).await?;
        Ok(positions.values().map(|at| at.len() as u64).sum())
    }

    pub async fn send_unprocessable(&self) -> Result<()> {
        let line = [LineRequest { sku: seed::ITEMS[0].sku.to_string(), quantity: 1 }];
        let order = eventually("an order for unprocessable events", SETTLE_TIMEOUT, async || {
            self.client.place_until_accepted(seed::CUSTOMERS[0].customer_id, &line).await
        });
        poison::send_unprocessable(self.client, &order.await?).await.map(drop)
    }

    pub async fn migrate_badly(&self, fault: &Fault) -> Result<u64> {
        let (stack, service) = (self.stack, fault.service());
        order_faults::apply_bad_migration(stack, A_SEVENTH).await?;
        sleep(fault.duration).await;
        let affected = wait_for_effect("a dead letter", async || {
            database_faults::count_dead_letters(stack, service, "handler_failed").await
        })
        .await;
        order_faults::revert_bad_migration(stack).await?;
        let affected = affected?;
        let replayed = order_faults::replay_dead_letters(stack, service).await;
        replayed.context(NotRecovered)?;
        Ok(affected)
    }

    /// Gives orders a deadline while stock is frozen.
    pub async fn expire_deadline(&self, fault: &Fault) -> Result<u64> {
        let (stack, began) = (self.stack, Utc::now());
        let frozen = stack.instances_of("stock")?;
        stack.set_environment("order", DEADLINE_VARIABLE, Some("1"))?;
        self.restart_service(fault.service()).await?;
        for name in &frozen {
            stack.pause(name).await?;
        }
        sleep(fault.duration).await;
        let affected = wait_for_effect("an order that the deadline ended", async || {
            order_faults::count_ended_by_deadline(stack, began).await
        })
        .await;
        for name in &frozen {
            stack.resume(name).await?;
        }
        stack.set_environment("order", DEADLINE_VARIABLE, None)?;
        self.restart_service(fault.service()).await?;
        affected
    }

    /// Restarts one instance after the other.
    async fn restart_service(&self, service: &str) -> Result<()> {
        for name in self.stack.instances_of(service)? {
            self.stop(&name).await?;
            self.start(&name).await?;
        }
        Ok(())
    }
}

/// Waits until a fault has an effect, which another fault may delay. Returns the number of
/// effects.
async fn wait_for_effect(what: &str, count: impl AsyncFn() -> Result<i64>) -> Result<u64> {
    eventually(what, EFFECT_TIMEOUT, async || {
        let effect = count().await?;
        ensure!(effect > 0, "the fault had no effect");
        Ok(u64::try_from(effect)?)
    })
    .await
}
