//! This checkout beside other commits: one stack of each runs, and they are measured in turn under the same load. A
//! change of the machine affects all of them, so compare the ratios within a turn and not the rates.

use std::collections::BTreeMap;

use anyhow::Result;
use e2e::stack_description::stack_description;

use crate::cases::{Case, Experiment};
use crate::environment::BenchEnvironment;
use crate::other_commit::OtherCommit;
use crate::plan::MeasurementPlan;
use crate::report::{RATIO_PREFIX, Report, Run, SAGAS_PER_SECOND, is_ratio_figure};
use crate::{Arguments, measure_and_close};

/// The name of this checkout among the commits.
const THIS: &str = "this checkout";

/// Measures a closed loop on a stack of this checkout and on one of each commit, and reports the ratios of each turn.
pub async fn measure(arguments: &Arguments, report: &mut Report) -> Result<()> {
    let commits: Vec<OtherCommit> =
        arguments.against.iter().map(|it| OtherCommit::build(it)).collect::<Result<_>>()?;
    let versions = [None].into_iter().chain(commits.iter().map(Some));
    let (mut names, mut stacks) = (Vec::new(), Vec::new());
    for (nth, version) in versions.enumerate() {
        let name = version.map_or(THIS, |commit| &commit.name).to_string();
        eprintln!("{name}");
        let (description, directory) = (stack_description(), format!("bench-{nth}"));
        let pgbench = !arguments.without_pgbench;
        stacks
            .push(BenchEnvironment::open(&description, &directory, None, pgbench, version).await?);
        names.push(name);
    }
    let plan = &arguments.plan;
    measure_and_close(stacks, arguments, report, async |stacks, report| {
        let stacks: Vec<_> = names.iter().map(String::as_str).zip(&*stacks).collect();
        for nth in 0..plan.repeats {
            eprintln!("turn {} of {}", nth + 1, plan.repeats);
            for case in Experiment::Closed.cases(plan) {
                measure_turn(&stacks, nth, case, plan, report).await?;
            }
            // A later turn may fail.
            report.write(&arguments.into)?;
        }
        Ok(())
    })
    .await
}

/// One measurement of each stack. Each turn begins with the next one, and every other turn goes round backwards.
async fn measure_turn(
    stacks: &[(&str, &BenchEnvironment)],
    turn: u32,
    (case, workload, load): Case,
    plan: &MeasurementPlan,
    report: &mut Report,
) -> Result<()> {
    let first = usize::try_from(turn / 2)?;
    let mut order: Vec<usize> = (0..stacks.len()).map(|nth| (first + nth) % stacks.len()).collect();
    if turn % 2 == 1 {
        order.reverse();
    }
    let mut runs: BTreeMap<&str, Run> = BTreeMap::new();
    for (name, stack) in order.into_iter().map(|nth| stacks[nth]) {
        let run = stack.measure(&format!("{case}, {name}"), workload, load, plan).await?;
        runs.insert(name, run.clone());
        report.add(run);
    }
    let this = &runs[THIS];
    for (name, other) in runs.iter().filter(|(name, _)| **name != THIS) {
        let ratios = report.add(Run::new(&format!("{case}, this / {name}")));
        for (figure, value) in this.figures.iter().filter(|(figure, _)| is_ratio_figure(figure)) {
            if other.get(figure) > 0.0 {
                ratios.set(&format!("{RATIO_PREFIX}{figure}"), value / other.get(figure));
            }
        }
        let rate = ratios.get(&format!("{RATIO_PREFIX}{SAGAS_PER_SECOND}"));
        eprintln!("  {case}: {rate:.2} × the rate of {name}");
    }
    Ok(())
}
