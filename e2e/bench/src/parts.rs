//! What is measured: each part alone takes less than ten minutes, and answers one question.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::ValueEnum;
use e2e::client::eventually;
use tokio::time::sleep;

use crate::costs::Costs;
use crate::loads::{self, Target};
use crate::report::{Report, Run, SAGAS};
use crate::site::Site;
use crate::wishes::{Skus, Wishes};
use crate::yardstick::Yardstick;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// 1 to 1,024 callers, each posting its next order when its last has ended
    Closed,
    /// Fixed rates, from a quarter of the peak to one and a half times as much
    Open,
    /// How fast orders end that waited for stock
    Drain,
    /// One instance of each service, and two
    Instances,
    /// 10 to 100,000 items, even and skewed, and a single one
    Skus,
    /// 1 to 50 lines an order
    Lines,
    /// What a stack costs that does nothing
    Idle,
}

pub struct Plan {
    pub repeats: u32,
    pub warm: Duration,
    pub lasting: Duration,
    /// Of closed loops.
    pub callers: Vec<usize>,
}

/// As many as it takes to find the peak.
const MANY: usize = 1_024;

impl Part {
    pub async fn run(self, site: &mut Site, plan: &Plan, report: &mut Report) -> Result<()> {
        eprintln!("{self:?}");
        for repeat in 0..plan.repeats {
            let yardstick = yardstick(site, plan, report).await?;
            let before = report.runs.len();
            match self {
                Part::Closed => closed(site, plan, report, repeat).await?,
                Part::Open => open(site, plan, report).await?,
                Part::Drain => drain(site, plan, report).await?,
                Part::Instances => instances(site, plan, report).await?,
                Part::Skus => skus(site, plan, report).await?,
                Part::Lines => lines(site, plan, report).await?,
                Part::Idle => return idle(site, report).await,
            }
            for run in &mut report.runs[before..] {
                *run = run.clone().beside(&yardstick);
            }
        }
        Ok(())
    }
}

async fn yardstick(site: &Site, plan: &Plan, report: &mut Report) -> Result<Yardstick> {
    let tx4 = site.yardstick.run(&site.stack, plan.lasting, false).await?;
    eprintln!("  tx4: {:.0}/s, Postgres {:.0} µs", tx4.per_second, tx4.postgres_micros);
    let mut run = Run { name: "tx4, 16 clients".into(), figures: Default::default() };
    run.set("tx4/s", tx4.per_second);
    run.set("Postgres µs/tx4", tx4.postgres_micros);
    report.runs.push(run);
    Ok(tx4)
}

async fn measure_closed(
    site: &Site,
    plan: &Plan,
    name: &str,
    wishes: Wishes,
    callers: usize,
) -> Result<Run> {
    let target = site.target(wishes)?;
    site.measure(name, loads::closed(&target, callers), plan.warm, plan.lasting).await
}

async fn closed(site: &Site, plan: &Plan, report: &mut Report, repeat: u32) -> Result<()> {
    // Up and down by turns, so that tables that grow and a machine that warms up favour nobody.
    let mut callers = plan.callers.clone();
    if repeat % 2 == 1 {
        callers.reverse();
    }
    for callers in callers {
        let name = format!("{callers} callers");
        let mut run = measure_closed(site, plan, &name, Wishes::default(), callers).await?;
        if callers == 1 {
            let alone = site.yardstick.run(&site.stack, plan.lasting, true).await?;
            let p50 = alone.p50_ms.unwrap_or_default();
            run.set("tx4 alone p50 ms", p50);
            run.set("end p50 × tx4 alone", run.get("end p50 ms") / p50);
        }
        report.runs.push(run);
    }
    Ok(())
}

async fn open(site: &Site, plan: &Plan, report: &mut Report) -> Result<()> {
    let peak = measure_closed(site, plan, "the peak", Wishes::default(), MANY).await?;
    let per_second = peak.get(SAGAS);
    report.runs.push(peak);
    for percent in [25, 50, 75, 90, 150] {
        let target = site.target(Wishes::default())?;
        let load = loads::open(&target, per_second * f64::from(percent) / 100.0);
        let name = format!("open, {percent} % of the peak");
        let mut run = site.measure(&name, load, plan.warm, plan.lasting).await?;
        run.set("goodput × peak", run.get(SAGAS) / per_second);
        report.runs.push(run);
    }
    Ok(())
}

/// Orders are placed for a while with stock away; then it comes back.
async fn drain(site: &Site, plan: &Plan, report: &mut Report) -> Result<()> {
    let peak = measure_closed(site, plan, "the peak", Wishes::default(), MANY).await?;
    let per_second = peak.get(SAGAS);
    report.runs.push(peak);
    let target = site.target(Wishes::default())?;
    site.stack.stop("stock").await?;
    let load = loads::open(&target, per_second * 0.75);
    sleep(plan.lasting).await;
    let told = load.told.clone();
    let placing = tokio::spawn(load.stop());
    sleep(Duration::from_secs(1)).await;
    let backlog = told.accepted.load(std::sync::atomic::Ordering::Relaxed);
    let before = Costs::now(&site.stack).await?;
    site.stack.start("stock").await?;
    let first = until(&target, 1).await?;
    let last = until(&target, backlog).await?;
    let after = Costs::now(&site.stack).await?;
    placing.await??;
    site.count(backlog);
    site.settled().await?;
    let seconds = (last - first).as_secs_f64();
    let mut run =
        Run::of("drain after stock was away", &after.since(&before), backlog as f64, seconds);
    run.set("drain × peak", run.get(SAGAS) / per_second);
    eprintln!("  drained {backlog} in {seconds:.1} s: {:.0}/s", run.get(SAGAS));
    report.runs.push(run);
    Ok(())
}

/// When so many orders have ended.
async fn until(target: &Target, count: u64) -> Result<Instant> {
    eventually("orders to end", crate::ends::ENDED_WITHIN, async || {
        let (confirmed, cancelled) = target.ends.counts();
        ensure!(confirmed + cancelled >= count, "{confirmed} are confirmed");
        Ok(Instant::now())
    })
    .await
}

async fn instances(site: &Site, plan: &Plan, report: &mut Report) -> Result<()> {
    for count in [1, 2] {
        site.stack.set_instances(count).await?;
        site.stack.up().await?;
        // The groups' partitions move.
        sleep(Duration::from_secs(5)).await;
        let name = format!("{count} of each service");
        report.runs.push(measure_closed(site, plan, &name, Wishes::default(), MANY).await?);
    }
    site.stack.set_instances(1).await
}

async fn skus(site: &mut Site, plan: &Plan, report: &mut Report) -> Result<()> {
    site.provide(100_000).await?;
    for (name, skus) in [
        ("10 items", Skus::Even(10)),
        ("10,000 items", Skus::Even(10_000)),
        ("100,000 items", Skus::Even(100_000)),
        ("10,000 items, Zipf", Skus::Zipf(10_000)),
        ("one item", Skus::One),
    ] {
        let wishes = Wishes { skus, lines: 1 };
        report.runs.push(measure_closed(site, plan, name, wishes, MANY).await?);
    }
    Ok(())
}

async fn lines(site: &Site, plan: &Plan, report: &mut Report) -> Result<()> {
    for lines in [1, 2, 10, 50] {
        let wishes = Wishes { lines, ..Wishes::default() };
        let name = format!("{lines} lines an order");
        report.runs.push(measure_closed(site, plan, &name, wishes, MANY).await?);
    }
    Ok(())
}

async fn idle(site: &Site, report: &mut Report) -> Result<()> {
    sleep(Duration::from_secs(5)).await;
    let (before, began) = (Costs::now(&site.stack).await?, Instant::now());
    sleep(Duration::from_secs(30)).await;
    let spent = Costs::now(&site.stack).await?.since(&before);
    let seconds = began.elapsed().as_secs_f64();
    let mut run = Run { name: "idle".into(), figures: Default::default() };
    for (name, micros) in &spent.cpu_micros {
        run.set(&format!("% of a core {name}"), micros / seconds / 1e4);
        eprintln!("  idle {name}: {:.2} % of a core", micros / seconds / 1e4);
    }
    report.runs.push(run);
    Ok(())
}
