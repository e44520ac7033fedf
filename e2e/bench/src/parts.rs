//! What is measured: each part alone takes less than ten minutes, and answers one question.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use e2e::wait::eventually;
use tokio::time::sleep;

use crate::costs::{self, Costs};
use crate::ends::{ENDED_WITHIN, Ends};
use crate::loads::Load;
use crate::old;
use crate::report::{Report, Run, SAGAS};
use crate::site::Site;
use crate::wishes::{Skus, Wishes};
use crate::yardstick::Yardstick;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// 1 to 1,024 callers, each posting its next order when its last has ended
    Closed,
    /// Fixed rates, from a quarter of what a closed loop reaches to one and a half times as much
    Open,
    /// How fast orders end that waited for stock
    Drain,
    /// One instance of each service, and two
    Instances,
    /// 10 to 100,000 items, even and skewed, and a single one
    Skus,
    /// 1 to 50 lines an order
    Lines,
    /// Empty tables, and ten million old orders
    Old,
    /// What a stack costs that does nothing
    Idle,
}

pub struct Plan {
    pub repeats: u32,
    pub warm: Duration,
    pub lasting: Duration,
    /// Of closed loops.
    pub callers: Vec<usize>,
    pub old_orders: i64,
}

impl Plan {
    pub fn described(&self) -> String {
        let (warm, lasting) = (self.warm.as_secs(), self.lasting.as_secs());
        format!("{} repeats of {lasting} s, each after {warm} s of the same load", self.repeats)
    }
}

const IDLE: Duration = Duration::from_secs(30);

/// How long the yardstick is looked at, before and after each case.
const YARDSTICK: Duration = Duration::from_secs(5);

/// Rates of the open loop, in hundredths of what the closed one reached.
const OPEN_PERCENT: [u32; 7] = [25, 50, 75, 90, 110, 125, 150];

impl Part {
    pub async fn run(self, site: &mut Site, plan: &Plan, report: &mut Report) -> Result<()> {
        match self {
            Part::Skus => site.provide(100_000).await?,
            Part::Old => {
                let described = old::described(&mut site.database().await?).await?;
                report.on.insert("Old orders".to_string(), described);
            }
            _ => (),
        }
        for nth in 0..plan.repeats {
            eprintln!("{self:?}, {} of {}", nth + 1, plan.repeats);
            if self == Part::Idle {
                idle(site, report).await?;
                continue;
            }
            let mut repeat = Repeat::begin(site, plan, report, nth).await?;
            match self {
                Part::Open => repeat.open().await?,
                Part::Drain => repeat.drain().await?,
                Part::Instances => repeat.instances().await?,
                Part::Old => repeat.old().await?,
                _ => repeat.cases(self.cases(plan)).await?,
            }
        }
        Ok(())
    }

    /// Of parts that differ in what is ordered, or in how many order.
    fn cases(self, plan: &Plan) -> Vec<Case> {
        let many = |name: &str, wishes| (name.to_string(), wishes, Load::MANY);
        let of = |skus| Wishes { skus, lines: 1 };
        match self {
            Part::Skus => vec![
                many("10 items", of(Skus::Even(10))),
                many("10,000 items", of(Skus::Even(10_000))),
                many("100,000 items", of(Skus::Even(100_000))),
                many("10,000 items, Zipf", of(Skus::zipf(10_000))),
                many("one item", of(Skus::Even(1))),
            ],
            Part::Lines => [1, 2, 10, 50]
                .map(|lines| {
                    many(&format!("{lines} lines an order"), Wishes { lines, ..Wishes::default() })
                })
                .to_vec(),
            _ => {
                let closed = |callers: &usize| {
                    (format!("{callers} callers"), Wishes::default(), Load::Callers(*callers))
                };
                plan.callers.iter().map(closed).collect()
            }
        }
    }
}

type Case = (String, Wishes, Load);

/// One of several, with the yardstick between its cases.
struct Repeat<'a> {
    site: &'a mut Site,
    plan: &'a Plan,
    report: &'a mut Report,
    /// There and back by turns, so that tables that grow and a machine that warms up favour nobody.
    backwards: bool,
    /// As it was before the next case.
    tx4: Yardstick,
}

impl<'a> Repeat<'a> {
    async fn begin(
        site: &'a mut Site,
        plan: &'a Plan,
        report: &'a mut Report,
        nth: u32,
    ) -> Result<Repeat<'a>> {
        let tx4 = yardstick(site, report).await?;
        Ok(Repeat { site, plan, report, backwards: nth % 2 == 1, tx4 })
    }

    async fn measure(&mut self, name: &str, wishes: Wishes, load: Load) -> Result<&mut Run> {
        let run = self.site.measure(name, wishes, load, self.plan).await?;
        let after = yardstick(self.site, self.report).await?;
        let before = std::mem::replace(&mut self.tx4, after);
        Ok(self.report.add(run.between(&before, &after)))
    }

    async fn peak(&mut self) -> Result<f64> {
        Ok(self.measure("the peak", Wishes::default(), Load::MANY).await?.get(SAGAS))
    }

    async fn cases(&mut self, mut cases: Vec<Case>) -> Result<()> {
        if self.backwards {
            cases.reverse();
        }
        for (name, wishes, load) in cases {
            self.measure(&name, wishes, load).await?;
            if load == Load::Callers(1) {
                let (site, plan) = (&self.site, self.plan);
                let alone = site.yardstick.run(&site.stack, plan.lasting, true).await?;
                let run = self.report.last();
                run.set("tx4 alone p50 ms", alone.p50_ms);
                for end in ["commit p50", "end p50"] {
                    if let Some(took) = run.figures.get(&format!("{end} ms")) {
                        run.set(&format!("{end} × tx4 alone"), took / alone.p50_ms);
                    }
                }
            }
        }
        Ok(())
    }

    async fn open(&mut self) -> Result<()> {
        let peak = self.peak().await?;
        let mut percents = OPEN_PERCENT;
        if self.backwards {
            percents.reverse();
        }
        for percent in percents {
            let name = format!("open, {percent} % of the peak");
            let load = Load::PerSecond(peak * f64::from(percent) / 100.0);
            let run = self.measure(&name, Wishes::default(), load).await?;
            run.set("goodput × peak", run.get(SAGAS) / peak);
        }
        Ok(())
    }

    /// Orders are placed for a while with stock away; then it comes back. What is left of them is less than
    /// a saga, and nothing else runs: so it is compared with nothing but the peak.
    async fn drain(&mut self) -> Result<()> {
        let peak = self.peak().await?;
        let (site, load_average) = (&self.site, costs::load_average());
        site.stack.stop("stock").await?;
        let load = site.start(Wishes::default(), Load::PerSecond(peak * 0.75))?;
        sleep(self.plan.lasting).await;
        let (told, ends) = (load.told.clone(), load.ends.clone());
        let placing = tokio::spawn(load.stop());
        // Those that are on their way are accepted meanwhile.
        sleep(Duration::from_secs(1)).await;
        let backlog = told.accepted.load(Ordering::Relaxed);
        let started = Instant::now();
        site.stack.start("stock").await?;
        let first = ended(&ends, 1).await?;
        let last = ended(&ends, backlog).await?;
        site.finish(&*placing.await??).await?;
        let since = |from: Instant| backlog as f64 / (last - from).as_secs_f64();
        let run = self.report.add(Run::named("drain after stock was away"));
        run.set("drained/s", since(first));
        run.set("drained/s from its start", since(started));
        run.set("drain × peak", since(first) / peak);
        run.set("load average", load_average);
        eprintln!(
            "  drained {backlog}: {:.0}/s, {:.0}/s from its start",
            since(first),
            since(started)
        );
        Ok(())
    }

    async fn instances(&mut self) -> Result<()> {
        for count in if self.backwards { [2, 1] } else { [1, 2] } {
            self.site.stack.set_instances(count).await?;
            self.site.stack.up().await?;
            // The groups' partitions move.
            sleep(Duration::from_secs(5)).await;
            let name = format!("{count} of each service");
            self.measure(&name, Wishes::default(), Load::MANY).await?;
        }
        self.site.stack.set_instances(1).await
    }

    async fn old(&mut self) -> Result<()> {
        let with = format!("{} million old orders", self.plan.old_orders as f64 / 1e6);
        let mut rates = BTreeMap::new();
        for old in [self.backwards, !self.backwards] {
            self.site.bring_old(old).await?;
            let name = if old { &with } else { "no old orders" };
            let run = self.measure(name, Wishes::default(), Load::MANY).await?;
            rates.insert(old, run.get(SAGAS));
        }
        let ratio = rates[&true] / rates[&false];
        self.report.add(Run::named(&with)).set("× without", ratio);
        eprintln!("  with old orders {ratio:.2} × the rate without");
        Ok(())
    }
}

/// Looks at the yardstick.
async fn yardstick(site: &Site, report: &mut Report) -> Result<Yardstick> {
    let load_average = costs::load_average();
    let tx4 = site.yardstick.run(&site.stack, YARDSTICK, false).await?;
    eprintln!("  tx4: {:.0}/s, Postgres {:.0} µs", tx4.per_second, tx4.postgres_micros);
    let run = report.add(Run::named("tx4, 16 clients"));
    run.set("tx4/s", tx4.per_second);
    run.set("Postgres µs/tx4", tx4.postgres_micros);
    run.set("load average", load_average);
    Ok(tx4)
}

async fn idle(site: &Site, report: &mut Report) -> Result<()> {
    sleep(Duration::from_secs(10)).await;
    let before = Costs::now(&site.stack).await?;
    sleep(IDLE).await;
    let after = Costs::now(&site.stack).await?;
    let memory = costs::memory_bytes(&site.stack).await?;
    let (spent, seconds) = (after.since(&before), (after.at - before.at).as_seconds_f64());
    let run = report.add(Run::named("idle"));
    run.set("load average", costs::load_average());
    for (member, micros) in &spent.cpu_micros {
        run.set(&format!("% of a core {member}"), micros / seconds / 1e4);
        run.set(&format!("MB {member}"), memory.get(member).copied().unwrap_or_default() / 1e6);
        eprintln!("  idle {member}: {:.2} % of a core", micros / seconds / 1e4);
    }
    Ok(())
}

/// When so many orders have ended.
async fn ended(ends: &Ends, count: u64) -> Result<Instant> {
    eventually("orders to end", ENDED_WITHIN, async || {
        let (confirmed, cancelled) = ends.counts();
        ensure!(confirmed + cancelled >= count, "{confirmed} are confirmed");
        Ok(Instant::now())
    })
    .await
}
