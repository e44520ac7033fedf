//! Injects each class of faults, and ends it again.

use std::fmt::{self, Display};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chrono::Utc;
use faults::database_faults;
use faults::faulty_network::Toxics;
use faults::links::{Link, Links};
use launcher::{Stack, eventually};
use tokio::time::sleep;

use crate::admin::republish;
use crate::client::http_client::Client;
use crate::client::order::LineRequest;
use crate::scenarios::chaos::fault::{Fault, FaultClass, Victim};
use crate::scenarios::chaos::replay::replay_dead_letters;
use crate::scenarios::order_faults;
use crate::scenarios::order_faults::DEADLINE_VARIABLE;
use crate::scenarios::{poison, redelivery};
use crate::stack_description::SERVICES;
use crate::workload::seed;

/// How long the stack may take to reach an expected state after a fault.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How much longer a fault may last until it has an effect.
const EFFECT_TIMEOUT: Duration = Duration::from_secs(25);

/// Records of a topic that are written again, and records of a partition that a rewound group reads
/// again, at most.
const DUPLICATES_MAX: i64 = 600;

const REREAD_MAX: i64 = i64::MAX;

/// Injects a fault into a running stack, and ends it again.
pub struct Injector<'a> {
    pub stack: &'a Stack,
    pub client: &'a Client,
    pub links: &'a Links,
}

/// Marks an error that is a violation, not a failure of the injection.
#[derive(Debug)]
pub struct NotRecovered;

impl Display for NotRecovered {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "it did not stop or restart as it must")
    }
}

impl Injector<'_> {
    /// Returns how much was affected.
    pub async fn apply(&self, fault: &Fault) -> Result<u64> {
        match &fault.victim {
            Victim::Component(name) => self.apply_to_component(fault, name).await,
            Victim::Service(service) => {
                let service = SERVICES.into_iter().find(|known| known == service);
                self.apply_to_service(fault, service.context("a service")?).await
            }
            Victim::Link(pair) => self.apply_to_link(fault, pair).await,
        }
    }

    /// What happens to the process of a component.
    async fn apply_to_component(&self, fault: &Fault, name: &str) -> Result<u64> {
        let (stack, duration) = (self.stack, fault.duration);
        match fault.class {
            FaultClass::KillService
            | FaultClass::KillKafka
            | FaultClass::KillRegistry
            | FaultClass::KillDatabase => {
                ensure!(stack.kill(name).await?, "{name} had exited before it was killed");
                self.start_after(name, duration).await?;
            }
            FaultClass::KillPostmaster => {
                stack.kill_main_process(name).await?;
                self.start_after(name, duration).await?;
            }
            FaultClass::StopDatabase => {
                stack.stop_immediately(name).await?;
                self.start_after(name, duration).await?;
            }
            FaultClass::StopService => {
                self.stop_component(name).await?;
                self.start_after(name, duration).await?;
            }
            FaultClass::PauseService
            | FaultClass::PauseKafka
            | FaultClass::PauseRegistry
            | FaultClass::PauseDatabase => {
                stack.pause(name).await?;
                sleep(duration).await;
                stack.resume(name).await?;
            }
            FaultClass::Scale => {
                stack.start(name).await?;
                self.client.refresh_instances(stack)?;
                sleep(duration).await;
                self.stop_component(name).await?;
                stack.remove(name).await?;
                self.client.refresh_instances(stack)?;
            }
            _ => {
                let service = name.strip_suffix("-db").unwrap_or_default();
                return self.apply_to_data(fault, service).await;
            }
        }
        // The victim was running, or the fault would have failed.
        Ok(1)
    }

    /// What happens inside a service's database, or in the topics.
    async fn apply_to_data(&self, fault: &Fault, service: &str) -> Result<u64> {
        let (stack, duration) = (self.stack, fault.duration);
        match fault.class {
            FaultClass::KillBackend => database_faults::kill_backend(stack, service).await?,
            FaultClass::ReadOnly => {
                database_faults::set_read_only(stack, service, true).await?;
                sleep(duration).await;
                database_faults::set_read_only(stack, service, false).await?;
            }
            FaultClass::SessionsTerminated => {
                return database_faults::terminate_sessions(stack, service).await;
            }
            FaultClass::RelayLockLost => {
                return database_faults::terminate_relay_session(stack, service).await;
            }
            FaultClass::TableLocked => {
                database_faults::lock_outbox(stack, service, duration).await?
            }
            FaultClass::SnapshotHeld => {
                database_faults::hold_snapshot(stack, service, duration).await?
            }
            FaultClass::DuplicateRecords => {
                return redelivery::produce_again_with_rng(
                    self.client,
                    DUPLICATES_MAX,
                    &mut fault.rng(),
                )
                .await;
            }
            FaultClass::PoisonRecords => {
                let positions =
                    poison::poison_with_rng(self.client, false, &mut fault.rng()).await?;
                return Ok(positions.values().map(|at| at.len() as u64).sum());
            }
            FaultClass::UnprocessableEvents => {
                let order =
                    eventually("an order for unprocessable events", SETTLE_TIMEOUT, async || {
                        let line = LineRequest { sku: seed::ITEMS[0].sku.to_string(), quantity: 1 };
                        self.client
                            .place_until_accepted(seed::CUSTOMERS[0].customer_id, &[line])
                            .await
                    });
                poison::send_unprocessable(self.client, &order.await?).await?;
            }
            other => bail!("{other:?} applies to no component"),
        }
        // The victim was running, or the fault would have failed.
        Ok(1)
    }

    async fn stop_component(&self, name: &str) -> Result<()> {
        self.stack.stop_gracefully(name).await.map(drop).context(NotRecovered)
    }

    async fn start_after(&self, name: &str, after: Duration) -> Result<()> {
        sleep(after).await;
        self.stack.start(name).await.context(NotRecovered)
    }

    async fn apply_to_service(&self, fault: &Fault, service: &'static str) -> Result<u64> {
        let (stack, duration) = (self.stack, fault.duration);
        match fault.class {
            FaultClass::OffsetsReset | FaultClass::OffsetsDeleted => {
                for name in stack.instances_of(service)? {
                    self.stop_component(&name).await?;
                }
                // A killed instance stays a member of the group until its session expires.
                eventually("the group to have no member", SETTLE_TIMEOUT, async || {
                    match fault.class {
                        FaultClass::OffsetsReset => {
                            redelivery::reset_offsets(self.client, service, REREAD_MAX).await
                        }
                        _ => redelivery::delete_offsets(self.client, service).await,
                    }
                })
                .await?;
                let reread = redelivery::consumer_lag(self.client, service).await?;
                for name in stack.instances_of(service)? {
                    self.start_after(&name, Duration::ZERO).await?;
                }
                Ok(u64::try_from(reread)?)
            }
            FaultClass::Republished => {
                let since = Some(Utc::now() - chrono::TimeDelta::seconds(10));
                let options =
                    republish::RepublishOptions { since, ..republish::RepublishOptions::default() };
                republish::republish_service(self.client, service, &options).await
            }
            FaultClass::BadMigration => {
                order_faults::apply_bad_migration(stack).await?;
                sleep(duration).await;
                let effect = self.wait_for_effect("a dead letter", async || {
                    database_faults::count_dead_letters(stack, service, "handler_failed").await
                });
                let effect = effect.await;
                order_faults::revert_bad_migration(stack).await?;
                let affected = effect?;
                replay_dead_letters(stack, self.client, service).await.context(NotRecovered)?;
                Ok(affected)
            }
            FaultClass::DeadlineExpired => {
                let (stock_instances, began) = (stack.instances_of("stock")?, Utc::now());
                stack.set_environment("order", DEADLINE_VARIABLE, Some("1"))?;
                self.restart_service(service).await?;
                for name in &stock_instances {
                    stack.pause(name).await?;
                }
                sleep(duration).await;
                let effect = self.wait_for_effect("an order that the deadline ended", async || {
                    order_faults::count_ended_by_deadline(stack, began).await
                });
                let effect = effect.await;
                for name in &stock_instances {
                    stack.resume(name).await?;
                }
                stack.set_environment("order", DEADLINE_VARIABLE, None)?;
                self.restart_service(service).await?;
                effect
            }
            other => bail!("{other:?} applies to no service"),
        }
    }

    /// Waits until a fault has an effect, which another fault may delay. Returns the number of
    /// effects.
    async fn wait_for_effect(
        &self,
        what: &str,
        count: impl AsyncFn() -> Result<i64>,
    ) -> Result<u64> {
        eventually(what, EFFECT_TIMEOUT, async || {
            let effect = count().await?;
            ensure!(effect > 0, "the fault had no effect");
            Ok(u64::try_from(effect)?)
        })
        .await
    }

    /// Restarts one instance after the other.
    async fn restart_service(&self, service: &str) -> Result<()> {
        for name in self.stack.instances_of(service)? {
            self.stop_component(&name).await?;
            self.start_after(&name, Duration::ZERO).await?;
        }
        Ok(())
    }

    async fn apply_to_link(&self, fault: &Fault, link: &Link) -> Result<u64> {
        let ms = Duration::from_millis;
        let proxy = self.links.get(link);
        let toxics = Toxics::default();
        let toxics = match fault.class {
            FaultClass::Latency => Toxics { latency: ms(200), jitter: ms(100), ..toxics },
            FaultClass::BlackHole => Toxics::black_hole(),
            FaultClass::LostRequests => Toxics { holds_requests: true, ..toxics },
            FaultClass::LostResponses => Toxics { holds_responses: true, ..toxics },
            FaultClass::ConnectionsRefused => Toxics { refuses_connections: true, ..toxics },
            FaultClass::LimitedBandwidth => Toxics { bytes_per_second: Some(20_000), ..toxics },
            FaultClass::LostCommitResponses => Toxics { commit_cut_percent: 50, ..toxics },
            FaultClass::ConnectionsReset => toxics,
            other => bail!("{other:?} applies to no link"),
        };
        let before = proxy.affected();
        proxy.set_toxics(toxics);
        if matches!(fault.class, FaultClass::ConnectionsReset | FaultClass::ConnectionsRefused) {
            proxy.reset_connections();
        }
        sleep(fault.duration).await;
        proxy.heal();
        Ok(proxy.affected() - before)
    }
}
