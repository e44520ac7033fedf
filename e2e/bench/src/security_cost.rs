//! The cost of security: a secured stack whose callers send tokens, and one that is not, both running,
//! measured in turn with the same load.

use std::collections::BTreeMap;

use anyhow::Result;
use e2e::stack_description::stack_description;
use launcher::StackDescription;

use crate::environment::BenchEnvironment;
use crate::loads::Load;
use crate::plan::MeasurementPlan;
use crate::report::{Report, Run, SAGAS_PER_SECOND};
use crate::workload::Workload;
use crate::{Arguments, measure_side_by_side};

const OPEN: &str = "SECURE=0";
const SECURED: &str = "SECURE=1, with tokens";

/// Measures both stacks, and reports the ratio of each pair of measurements.
pub async fn measure(
    arguments: &Arguments,
    plan: &MeasurementPlan,
    report: &mut Report,
) -> Result<()> {
    let open = async |name: &str, secure: bool| {
        let description = StackDescription { secure, ..stack_description() };
        BenchEnvironment::open(&description, name, None, !arguments.without_pgbench, None).await
    };
    let stacks = vec![open("bench", false).await?, open("bench-secured", true).await?];
    let turn = async |stacks: &[BenchEnvironment], nth: u32, report: &mut Report| {
        measure_pair(stacks, nth % 2 == 1, plan, report).await
    };
    measure_side_by_side(stacks, arguments, plan, report, turn).await
}

/// One measurement of each stack: the open one first, or the secured one.
async fn measure_pair(
    stacks: &[BenchEnvironment],
    reversed: bool,
    plan: &MeasurementPlan,
    report: &mut Report,
) -> Result<()> {
    let mut rates = BTreeMap::new();
    for is_secured in [reversed, !reversed] {
        let name = if is_secured { SECURED } else { OPEN };
        let stack = &stacks[usize::from(is_secured)];
        let run = stack.measure(name, Workload::default(), Load::SATURATING, plan).await?;
        rates.insert(is_secured, run.get(SAGAS_PER_SECOND));
        report.add(run);
    }
    let ratio = rates[&true] / rates[&false];
    report.add(Run::new(SECURED)).set("× without", ratio);
    eprintln!("  secured {ratio:.2} × the rate without");
    Ok(())
}
