//! The number and duration of measurements.

use std::time::Duration;

#[derive(Clone)]
pub struct MeasurementPlan {
    pub repeats: u32,
    pub warm_up: Duration,
    pub duration: Duration,
    /// The numbers of callers in closed loops.
    pub callers: Vec<usize>,
    pub old_orders: i64,
}

impl MeasurementPlan {
    pub fn describe(&self) -> String {
        let (warm, lasting) = (self.warm_up.as_secs(), self.duration.as_secs());
        format!("{} repeats of {lasting} s, each after {warm} s of the same load", self.repeats)
    }
}
