//! The effect of faults: counts by class, and the orders in flight during a fault.

use std::iter::Sum;

use serde::{Deserialize, Serialize};

use crate::scenarios::chaos::nemesis::FaultRecord;

/// How often the faults of a class were scheduled, injected, had an effect, and had one with orders
/// in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    pub scheduled: u64,
    pub injected: u64,
    pub effective: u64,
    pub overlapping: u64,
}

impl Sum for FaultCounts {
    fn sum<I: Iterator<Item = FaultCounts>>(all: I) -> FaultCounts {
        all.fold(FaultCounts::default(), |sum, times| FaultCounts {
            scheduled: sum.scheduled + times.scheduled,
            injected: sum.injected + times.injected,
            effective: sum.effective + times.effective,
            overlapping: sum.overlapping + times.overlapping,
        })
    }
}

/// A fault, and the number of orders in flight during it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FaultImpact {
    pub record: FaultRecord,
    pub orders_in_flight: i64,
}
