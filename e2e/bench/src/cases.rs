//! The cases of the experiments that differ in the workload or in the number of callers.

use crate::experiments::Experiment;
use crate::loads::Load;
use crate::plan::MeasurementPlan;
use crate::workload::{SkuDistribution, Workload};

/// A name, which orders are placed, and how they arrive.
pub type Case = (String, Workload, Load);

impl Experiment {
    /// Its cases.
    pub fn cases(self, plan: &MeasurementPlan) -> Vec<Case> {
        let many = |name: &str, workload| (name.to_string(), workload, Load::SATURATING);
        let of = |skus| Workload { skus, lines: 1 };
        match self {
            Experiment::Skus => vec![
                many("10 items", of(SkuDistribution::Uniform(10))),
                many("10,000 items", of(SkuDistribution::Uniform(10_000))),
                many("100,000 items", of(SkuDistribution::Uniform(100_000))),
                many("10,000 items, Zipf", of(SkuDistribution::zipf(10_000))),
                many("one item", of(SkuDistribution::Uniform(1))),
            ],
            Experiment::Lines => [1, 2, 10, 50]
                .map(|lines| {
                    many(
                        &format!("{lines} lines an order"),
                        Workload { lines, ..Workload::default() },
                    )
                })
                .to_vec(),
            _ => {
                let closed = |callers: &usize| {
                    (format!("{callers} callers"), Workload::default(), Load::Callers(*callers))
                };
                plan.callers.iter().map(closed).collect()
            }
        }
    }
}
