//! The experiments, and the cases of those that differ in the workload or in the number of callers.

use clap::ValueEnum;

use crate::loads::Load;
use crate::plan::MeasurementPlan;
use crate::workload::{SkuDistribution, Workload};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Experiment {
    /// 1 to 1,024 callers, each posting its next order when its last has ended
    Closed,
    /// Fixed rates, from a quarter to one and a half times the rate of a closed loop
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
    /// The cost of an idle stack
    Idle,
}

/// A name, which orders are placed, and how they arrive.
pub type Case = (String, Workload, Load);

impl Experiment {
    /// Its cases.
    pub fn cases(self, plan: &MeasurementPlan) -> Vec<Case> {
        let many = |name: &str, workload| (name.to_string(), workload, Load::SATURATING);
        let skus = |name, skus| many(name, Workload { skus, lines: 1 });
        match self {
            Experiment::Skus => vec![
                skus("10 items", SkuDistribution::Uniform(10)),
                skus("10,000 items", SkuDistribution::Uniform(10_000)),
                skus("100,000 items", SkuDistribution::Uniform(100_000)),
                skus("10,000 items, Zipf", SkuDistribution::zipf(10_000)),
                skus("one item", SkuDistribution::Uniform(1)),
            ],
            Experiment::Lines => {
                let lines = |lines| Workload { lines, ..Workload::default() };
                let counts = [1, 2, 10, 50].into_iter();
                counts.map(|n| many(&format!("{n} lines an order"), lines(n))).collect()
            }
            _ => {
                let closed = |callers: &usize| {
                    (format!("{callers} callers"), Workload::default(), Load::Callers(*callers))
                };
                plan.callers.iter().map(closed).collect()
            }
        }
    }
}
