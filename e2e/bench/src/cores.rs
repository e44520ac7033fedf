//! `make bench PART=cores`: what limits the rate when services and databases have more cores.
//!
//! They get 1, 1.5 and 2 cores together, with the load and Kafka beside them. If the rate grows with the cores, the
//! processor limits it. The use of each loop's session shows which single point would limit it next, and at which
//! rate: where that session is busy all the time, if a saga does not cost it less by then.

use anyhow::Result;
use e2e::stack_description::SERVICES;
use launcher::proc_fs::processes_in;

use crate::cpu_limit::CpuLimit;
use crate::environment::BenchEnvironment;
use crate::loads::Load;
use crate::plan::MeasurementPlan;
use crate::report::{Report, SAGAS_PER_SECOND};
use crate::session_use::SessionWatch;
use crate::workload::Workload;

const CORES: [f64; 3] = [1.0, 1.5, 2.0];

pub async fn measure(
    environment: &BenchEnvironment,
    plan: &MeasurementPlan,
    report: &mut Report,
) -> Result<()> {
    let stack = environment.stack()?;
    let limit = CpuLimit::create()?;
    let programs: Vec<&str> = SERVICES.into_iter().chain(["postgres"]).collect();
    // Twice, since the first group of processes may have started children meanwhile.
    for _ in 0..2 {
        limit.add(&processes_in(stack.directory(), &programs))?;
    }
    for nth in 0..plan.repeats {
        eprintln!("Cores, {} of {}", nth + 1, plan.repeats);
        let mut cases = CORES;
        if nth % 2 == 1 {
            cases.reverse();
        }
        for cores in cases {
            limit.set_cores(cores)?;
            measure_one(environment, cores, plan, report).await?;
        }
    }
    Ok(())
}

async fn measure_one(
    environment: &BenchEnvironment,
    cores: f64,
    plan: &MeasurementPlan,
    report: &mut Report,
) -> Result<()> {
    let databases = &environment.client.addresses.databases;
    let sessions = SessionWatch::start(databases, plan.warm_up, plan.duration);
    let name = format!("{cores} cores for services and databases");
    let run = environment.measure(&name, Workload::default(), Load::SATURATING, plan).await?;
    let rate = run.get(SAGAS_PER_SECOND);
    let run = report.add(run);
    for (of_loop, share) in sessions.shares().await? {
        run.set(&format!("% busy {of_loop}"), 100.0 * share);
        run.set(&format!("sagas/s if always busy: {of_loop}"), rate / share);
        eprintln!("  {of_loop}: busy for {:.0} %", 100.0 * share);
    }
    Ok(())
}
