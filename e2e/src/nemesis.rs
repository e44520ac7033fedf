//! Carries out a schedule of faults on a running stack, heals each, and notes when it was and how it
//! went. Faults overlap, except where two would touch the same process.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use chrono::{DateTime, Utc};
use futures::future::join_all;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::client::{Client, Wish};
use crate::fault::{Class, Fault, Victim};
use crate::narration::say;
use crate::pairs::{Pair, Pairs};
use crate::proxy::Way;
use crate::sabotage::DEADLINE;
use crate::topology::SERVICES;
use crate::wait::eventually;
use crate::{Stack, announce, replays, sabotage, seed, strangers};

/// How long a fault and its healing may take beyond what it lasts: a process has to start while
/// other faults go on.
const HEALED_WITHIN: Duration = Duration::from_secs(150);

/// How long everything else may take to be as it should be, once all faults are over.
const SOON: Duration = Duration::from_secs(60);

/// How long a fault may go on that has not met anybody.
const MET_WITHIN: Duration = Duration::from_secs(25);

/// Records of a topic that are written again, and what a rewound group has to read again of a
/// partition, at most.
const REPEATED: i64 = 600;
const REWOUND: i64 = i64::MAX;

/// Whoever lets the victims suffer.
pub struct Nemesis<'a> {
    pub stack: &'a Stack,
    pub client: &'a Client,
    pub pairs: &'a Pairs,
    pub instances: u16,
    busy: BTreeMap<String, Mutex<()>>,
}

/// A fault as it went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Happened {
    pub fault: Fault,
    /// From the beginning of the load: later than planned where it had to wait for another one.
    pub at: Duration,
    pub began: DateTime<Utc>,
    pub ended: DateTime<Utc>,
    /// How much it struck: processes, sessions, records, or what came along a way meanwhile.
    pub struck: u64,
    /// What was not as it should be afterwards.
    pub broken: Option<String>,
    /// Why it could not be brought about; then it does not count.
    pub failed: Option<String>,
    /// It came too late for this round: those before it took so long.
    pub left_out: bool,
}

/// Marks what is not the nemesis' own failure.
#[derive(Debug)]
struct Broken;

impl Display for Broken {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "it did not stop, or come back, as it has to")
    }
}

impl Happened {
    /// Whether it befell its victim at all.
    pub fn counts(&self) -> bool {
        !self.left_out && self.failed.is_none()
    }
}

impl<'a> Nemesis<'a> {
    pub fn new(
        stack: &'a Stack,
        client: &'a Client,
        pairs: &'a Pairs,
        instances: u16,
        faults: &[Fault],
    ) -> Nemesis<'a> {
        let touched = faults.iter().flat_map(|fault| fault.touches(instances));
        let busy = touched.map(|name| (name, Mutex::new(()))).collect();
        Nemesis { stack, client, pairs, instances, busy }
    }

    /// All faults of a schedule, each at its time; those that come after `last` are left out.
    pub async fn run(&self, faults: &[Fault], last: Duration) -> Vec<Happened> {
        let began = Instant::now();
        join_all(faults.iter().map(|fault| self.befall(fault, began, began + last))).await
    }

    async fn befall(&self, fault: &Fault, round: Instant, last: Instant) -> Happened {
        sleep_until(round + fault.at).await;
        let _touched = self.take(fault).await;
        let began = Utc::now();
        let mut happened = Happened {
            fault: fault.clone(),
            at: round.elapsed(),
            began,
            ended: began,
            struck: 0,
            broken: None,
            failed: None,
            left_out: Instant::now() > last,
        };
        if happened.left_out {
            return happened;
        }
        let at = |round: Instant| format!("{:>6.1} s ", round.elapsed().as_secs_f64());
        say(&format!("{} {fault}, for {:.1} s", at(round), fault.lasting.as_secs_f64()));
        match timeout(fault.lasting + HEALED_WITHIN, self.strike(fault)).await {
            Ok(Ok(struck)) => happened.struck = struck,
            Ok(Err(error)) if error.downcast_ref::<Broken>().is_some() => {
                happened.broken = Some(format!("{error:#}"));
            }
            Ok(Err(error)) => happened.failed = Some(format!("{error:#}")),
            Err(_) => happened.broken = Some(format!("not healed within {HEALED_WITHIN:?}")),
        }
        happened.ended = Utc::now();
        if let Some(trouble) = happened.broken.as_ref().or(happened.failed.as_ref()) {
            say(&format!("{} TROUBLE  {fault}: {trouble}", at(round)));
        }
        happened
    }

    /// In order of their names, so that two faults never wait for each other.
    async fn take(&self, fault: &Fault) -> Vec<MutexGuard<'_, ()>> {
        let mut taken = Vec::new();
        for name in fault.touches(self.instances) {
            if let Some(victim) = self.busy.get(&name) {
                taken.push(victim.lock().await);
            }
        }
        taken
    }

    /// Answers how much was struck.
    async fn strike(&self, fault: &Fault) -> Result<u64> {
        match &fault.victim {
            Victim::Member(name) => self.strike_member(fault, name).await,
            Victim::Service(service) => {
                let service = SERVICES.into_iter().find(|known| known == service);
                self.strike_service(fault, service.context("a service")?).await
            }
            Victim::Pair(pair) => self.strike_pair(fault, pair).await,
        }
    }

    async fn strike_member(&self, fault: &Fault, name: &str) -> Result<u64> {
        let (stack, lasting) = (self.stack, fault.lasting);
        let service = name.strip_suffix("-db").unwrap_or_default();
        match fault.class {
            Class::KillService | Class::KillKafka | Class::KillRegistry | Class::KillDatabase => {
                ensure!(stack.kill(name).await?, "{name} had died before it was killed");
                self.back(name, lasting).await?;
            }
            Class::KillPostmaster => {
                stack.kill_first(name).await?;
                self.back(name, lasting).await?;
            }
            Class::StopDatabase => {
                stack.stop_at_once(name).await?;
                self.back(name, lasting).await?;
            }
            Class::StopService => {
                self.stop(name).await?;
                self.back(name, lasting).await?;
            }
            Class::PauseService
            | Class::PauseKafka
            | Class::PauseRegistry
            | Class::PauseDatabase => {
                stack.pause(name).await?;
                sleep(lasting).await;
                stack.resume(name).await?;
            }
            Class::Scale => {
                stack.start(name).await?;
                self.client.learn(stack)?;
                sleep(lasting).await;
                self.stop(name).await?;
                stack.remove(name).await?;
                self.client.learn(stack)?;
            }
            Class::KillBackend => sabotage::kill_backend(stack, service).await?,
            Class::ReadOnly => {
                sabotage::read_only(stack, service, true).await?;
                sleep(lasting).await;
                sabotage::read_only(stack, service, false).await?;
            }
            Class::SessionsEnded => return sabotage::end_sessions(stack, service).await,
            Class::RelayLockLost => return sabotage::end_relay_session(stack, service).await,
            Class::TableLocked => sabotage::lock_table(stack, service, lasting).await?,
            Class::SnapshotHeld => sabotage::hold_snapshot(stack, service, lasting).await?,
            Class::Repeats => {
                return replays::reproduce_drawn(self.client, REPEATED, &mut fault.lots()).await;
            }
            Class::Poison => {
                let landed = strangers::poison_drawn(self.client, false, &mut fault.lots()).await?;
                return Ok(landed.values().map(|places| places.len() as u64).sum());
            }
            Class::Impossible => {
                let order = eventually("an order to be wrong about", SOON, async || {
                    let wish = Wish { sku: seed::ITEMS[0].sku.to_string(), quantity: 1 };
                    self.client.placed(seed::CUSTOMERS[0].customer_id, &[wish]).await
                });
                strangers::send_impossible(self.client, &order.await?).await?;
            }
            other => bail!("{other:?} befalls no process"),
        }
        // Whoever it befell was there, or it would have failed.
        Ok(1)
    }

    async fn stop(&self, name: &str) -> Result<()> {
        self.stack.stop_well(name).await.map(drop).context(Broken)
    }

    async fn back(&self, name: &str, after: Duration) -> Result<()> {
        sleep(after).await;
        self.stack.start(name).await.context(Broken)
    }

    async fn strike_service(&self, fault: &Fault, service: &'static str) -> Result<u64> {
        let (stack, lasting) = (self.stack, fault.lasting);
        match fault.class {
            Class::Rewind | Class::OffsetsLost => {
                for name in stack.instances_of(service)? {
                    self.stop(&name).await?;
                }
                // An instance that was killed before is a member until its session is over.
                eventually("the group to have no member", SOON, async || match fault.class {
                    Class::Rewind => replays::rewind(self.client, service, REWOUND).await,
                    _ => replays::forget(self.client, service).await,
                })
                .await?;
                let reread = replays::behind(self.client, service).await?;
                for name in stack.instances_of(service)? {
                    self.back(&name, Duration::ZERO).await?;
                }
                Ok(u64::try_from(reread)?)
            }
            Class::AnnouncedAgain => {
                let since = Some(Utc::now() - chrono::TimeDelta::seconds(10));
                let wish = announce::Announce { since, ..announce::Announce::default() };
                announce::of_service(self.client, service, &wish).await
            }
            Class::BadMigration => {
                sabotage::spoil_payments(stack).await?;
                sleep(lasting).await;
                let met = self.met("a dead letter", async || {
                    sabotage::letters(stack, service, "failing").await
                });
                let met = met.await;
                sabotage::mend_payments(stack).await?;
                let struck = met?;
                self.redrive(service).await.context(Broken)?;
                Ok(struck)
            }
            Class::Deadline => {
                let (others, began) = (stack.instances_of("stock")?, Utc::now());
                stack.set_environment("order", DEADLINE, Some("1"))?;
                self.again(service).await?;
                for name in &others {
                    stack.pause(name).await?;
                }
                sleep(lasting).await;
                let met = self.met("an order that the deadline ended", async || {
                    sabotage::ended_by_deadline(stack, began).await
                });
                let met = met.await;
                for name in &others {
                    stack.resume(name).await?;
                }
                stack.set_environment("order", DEADLINE, None)?;
                self.again(service).await?;
                met
            }
            other => bail!("{other:?} befalls no service"),
        }
    }

    /// Waits until a fault has met somebody: what it is about may be held up by another one. Answers
    /// how many it has met.
    async fn met(&self, what: &str, count: impl AsyncFn() -> Result<i64>) -> Result<u64> {
        eventually(what, MET_WITHIN, async || {
            let met = count().await?;
            ensure!(met > 0, "there is none");
            Ok(u64::try_from(met)?)
        })
        .await
    }

    /// One instance after the other.
    async fn again(&self, service: &str) -> Result<()> {
        for name in self.stack.instances_of(service)? {
            self.stop(&name).await?;
            self.back(&name, Duration::ZERO).await?;
        }
        Ok(())
    }

    async fn strike_pair(&self, fault: &Fault, pair: &Pair) -> Result<u64> {
        let ms = Duration::from_millis;
        let proxy = self.pairs.of(pair);
        let way = Way::default();
        let way = match fault.class {
            Class::Latency => Way { latency: ms(200), jitter: ms(100), ..way },
            Class::BlackHole => Way::black_hole(),
            Class::LostRequests => Way { holds_requests: true, ..way },
            Class::LostAnswers => Way { holds_answers: true, ..way },
            Class::Refusal => Way { refuses: true, ..way },
            Class::Narrow => Way { bytes_per_second: Some(20_000), ..way },
            Class::CutCommits => Way { commits_cut_percent: 50, ..way },
            Class::Reset => way,
            other => bail!("{other:?} befalls no way"),
        };
        let before = proxy.struck();
        proxy.set(way);
        if matches!(fault.class, Class::Reset | Class::Refusal) {
            proxy.reset();
        }
        sleep(fault.lasting).await;
        proxy.heal();
        Ok(proxy.struck() - before)
    }

    /// What an operator does once the cause is gone: the consumer goes on if it paused, and every
    /// dead letter is tried again, until none waits that failed for that cause.
    async fn redrive(&self, service: &str) -> Result<()> {
        let operators = || {
            let names = self.stack.instances_of(service)?;
            names.iter().map(|name| self.stack.operator_url(name)).collect::<Result<Vec<_>>>()
        };
        eventually("the dead letters of a bad migration to be handled", SOON, async || {
            let mut trouble = None;
            for url in operators()? {
                match self.replay_all(&url).await {
                    Ok(()) => return Ok(()),
                    Err(error) => trouble = Some(error),
                }
            }
            Err(trouble.context("there is no instance")?)
        })
        .await
    }

    async fn replay_all(&self, operator: &str) -> Result<()> {
        let post = async |path: &str, body: Value| {
            let body = Some(body.to_string().into_bytes());
            self.client.send(reqwest::Method::POST, &format!("{operator}{path}"), None, body).await
        };
        post("/consumer/resume", json!({})).await?.accepted::<Value>()?;
        let mut after = json!(0);
        while !after.is_null() {
            let wish = json!({ "after": after });
            let answer: Value = post("/dead-letters/replay", wish).await?.accepted()?;
            after = answer["next"].clone();
        }
        let failing = sabotage::letters(self.stack, "payment", "failing").await?;
        ensure!(failing == 0, "{failing} letters are left");
        Ok(())
    }

    /// Whatever is left of any fault is over: everybody runs, nobody is frozen, every way is open.
    pub async fn heal_all(&self) -> Result<()> {
        self.pairs.heal();
        self.stack.set_instances(self.instances).await?;
        sabotage::mend_all(self.stack).await?;
        self.stack.up().await?;
        self.client.learn(self.stack)?;
        self.redrive("payment").await
    }
}
