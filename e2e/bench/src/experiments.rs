//! The experiments: each takes less than ten minutes alone, and answers one question.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use launcher::eventually;
use tokio::time::sleep;

use crate::cases::{Case, Experiment};
use crate::completion_watch::{COMPLETION_TIMEOUT, CompletionWatch};
use crate::cpu_costs;
use crate::environment::BenchEnvironment;
use crate::loads::Load;
use crate::plan::MeasurementPlan;
use crate::preload;
use crate::report::{Report, Run, SAGAS_PER_SECOND};
use crate::workload::Workload;
use crate::yardstick::Yardstick;

const IDLE_DURATION: Duration = Duration::from_secs(30);

/// How long the yardstick runs, before and after each case.
const YARDSTICK_DURATION: Duration = Duration::from_secs(5);

/// Rates of the open loop, in percent of the rate of the closed loop.
const OPEN_LOOP_PERCENTS: [u32; 7] = [25, 50, 75, 90, 110, 125, 150];

impl Experiment {
    pub async fn run(
        self,
        environment: &mut BenchEnvironment,
        plan: &MeasurementPlan,
        report: &mut Report,
    ) -> Result<()> {
        match self {
            Experiment::Skus => environment.seed(100_000).await?,
            Experiment::Old => {
                let description =
                    preload::describe(&mut environment.connect_database().await?).await?;
                report.environment.insert("Old orders".to_string(), description);
            }
            _ => (),
        }
        for nth in 0..plan.repeats {
            eprintln!("{self:?}, {} of {}", nth + 1, plan.repeats);
            if self == Experiment::Idle {
                measure_idle(environment, report).await?;
                continue;
            }
            let mut repeat = Repeat::start(environment, plan, report, nth).await?;
            match self {
                Experiment::Open => repeat.run_open_loop().await?,
                Experiment::Drain => repeat.run_drain().await?,
                Experiment::Instances => repeat.run_instances().await?,
                Experiment::Old => repeat.run_preloaded().await?,
                _ => repeat.run_cases(self.cases(plan)).await?,
            }
        }
        Ok(())
    }
}

/// One case of several, with the yardstick between them.
struct Repeat<'a> {
    environment: &'a mut BenchEnvironment,
    plan: &'a MeasurementPlan,
    report: &'a mut Report,
    /// The cases alternate in direction, so that growing tables and a warming machine favour no
    /// case.
    reversed: bool,
    /// The yardstick after this case is the one before the next.
    tx4: Yardstick,
}

impl<'a> Repeat<'a> {
    async fn start(
        environment: &'a mut BenchEnvironment,
        plan: &'a MeasurementPlan,
        report: &'a mut Report,
        nth: u32,
    ) -> Result<Repeat<'a>> {
        let tx4 = measure_yardstick(environment, report).await?;
        Ok(Repeat { environment, plan, report, reversed: nth % 2 == 1, tx4 })
    }

    async fn measure(&mut self, name: &str, workload: Workload, load: Load) -> Result<&mut Run> {
        let run = self.environment.measure(name, workload, load, self.plan).await?;
        let after = measure_yardstick(self.environment, self.report).await?;
        let before = std::mem::replace(&mut self.tx4, after);
        Ok(self.report.add(run.relative_to(&before, &after)))
    }

    async fn measure_peak(&mut self) -> Result<f64> {
        Ok(self
            .measure("the peak", Workload::default(), Load::SATURATING)
            .await?
            .get(SAGAS_PER_SECOND))
    }

    async fn run_cases(&mut self, mut cases: Vec<Case>) -> Result<()> {
        if self.reversed {
            cases.reverse();
        }
        for (name, workload, load) in cases {
            self.measure(&name, workload, load).await?;
            if let Load::Callers(1) = load {
                let alone = self.environment.run_yardstick(self.plan.duration, true).await?;
                let run = self.report.last_run();
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

    async fn run_open_loop(&mut self) -> Result<()> {
        let peak = self.measure_peak().await?;
        let mut percents = OPEN_LOOP_PERCENTS;
        if self.reversed {
            percents.reverse();
        }
        for percent in percents {
            let name = format!("open, {percent} % of the peak");
            let load = Load::PerSecond(peak * f64::from(percent) / 100.0);
            let run = self.measure(&name, Workload::default(), load).await?;
            run.set("goodput × peak", run.get(SAGAS_PER_SECOND) / peak);
        }
        Ok(())
    }

    /// Orders are placed for a while with stock stopped; then it is started. The remaining work is
    /// less than a whole saga, and nothing else runs, so it is only compared with the peak.
    async fn run_drain(&mut self) -> Result<()> {
        let peak = self.measure_peak().await?;
        let (environment, load_average) = (&self.environment, cpu_costs::load_average());
        let stack = &environment.stack;
        stack.stop("stock").await?;
        let load = environment.start_load(Workload::default(), Load::PerSecond(peak * 0.75))?;
        sleep(self.plan.duration).await;
        let (measurements, completions) = (load.measurements.clone(), load.completions.clone());
        let placing = tokio::spawn(load.stop());
        // Orders in flight are accepted meanwhile.
        sleep(Duration::from_secs(1)).await;
        let backlog = measurements.accepted.load(Ordering::Relaxed);
        let started = Instant::now();
        stack.start("stock").await?;
        let first = wait_until_ended(&completions, 1).await?;
        let last = wait_until_ended(&completions, backlog).await?;
        environment.finish(&*placing.await??).await?;
        let since = |from: Instant| backlog as f64 / (last - from).as_secs_f64();
        let run = self.report.add(Run::new("drain after stock was away"));
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

    async fn run_instances(&mut self) -> Result<()> {
        for count in if self.reversed { [2, 1] } else { [1, 2] } {
            let stack = &self.environment.stack;
            stack.set_instances(count).await?;
            stack.up().await?;
            // The partitions of the groups move.
            sleep(Duration::from_secs(5)).await;
            let name = format!("{count} of each service");
            self.measure(&name, Workload::default(), Load::SATURATING).await?;
        }
        self.environment.stack.set_instances(1).await
    }

    async fn run_preloaded(&mut self) -> Result<()> {
        let with = format!("{} million old orders", self.plan.old_orders as f64 / 1e6);
        let mut rates = BTreeMap::new();
        for old in [self.reversed, !self.reversed] {
            self.environment.use_preloaded(old).await?;
            let name = if old { &with } else { "no old orders" };
            let run = self.measure(name, Workload::default(), Load::SATURATING).await?;
            rates.insert(old, run.get(SAGAS_PER_SECOND));
        }
        let ratio = rates[&true] / rates[&false];
        self.report.add(Run::new(&with)).set("× without", ratio);
        eprintln!("  with old orders {ratio:.2} × the rate without");
        Ok(())
    }
}

async fn measure_yardstick(
    environment: &BenchEnvironment,
    report: &mut Report,
) -> Result<Yardstick> {
    let load_average = cpu_costs::load_average();
    let tx4 = environment.run_yardstick(YARDSTICK_DURATION, false).await?;
    eprintln!("  tx4: {:.0}/s, Postgres {:.0} µs", tx4.per_second, tx4.postgres_micros);
    let run = report.add(Run::new("tx4, 16 clients"));
    run.set("tx4/s", tx4.per_second);
    run.set("Postgres µs/tx4", tx4.postgres_micros);
    run.set("load average", load_average);
    Ok(tx4)
}

async fn measure_idle(environment: &BenchEnvironment, report: &mut Report) -> Result<()> {
    sleep(Duration::from_secs(10)).await;
    let before = environment.measure_costs().await?;
    sleep(IDLE_DURATION).await;
    let after = environment.measure_costs().await?;
    let memory = environment.memory_bytes().await?;
    let (spent, seconds) = (after.since(&before), (after.at - before.at).as_seconds_f64());
    let run = report.add(Run::new("idle"));
    run.set("load average", cpu_costs::load_average());
    for (component, micros) in &spent.cpu_micros {
        run.set(&format!("% of a core {component}"), micros / seconds / 1e4);
        run.set(
            &format!("MB {component}"),
            memory.get(component).copied().unwrap_or_default() / 1e6,
        );
        eprintln!("  idle {component}: {:.2} % of a core", micros / seconds / 1e4);
    }
    Ok(())
}

/// The time when this number of orders has ended.
async fn wait_until_ended(completions: &CompletionWatch, count: u64) -> Result<Instant> {
    eventually("orders to end", COMPLETION_TIMEOUT, async || {
        let ended = completions.count();
        ensure!(ended >= count, "{ended} have ended");
        Ok(Instant::now())
    })
    .await
}
