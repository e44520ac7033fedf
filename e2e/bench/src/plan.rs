//! The number and duration of measurements.

use std::time::Duration;

use e2e::console::seconds;

use crate::loads::CONNECTIONS_MAX;

#[derive(Clone, clap::Args)]
pub struct MeasurementPlan {
    #[arg(long, default_value_t = 3)]
    pub repeats: u32,
    /// The duration of each measurement
    #[arg(long = "seconds", default_value = "8", value_parser = seconds)]
    pub duration: Duration,
    /// The duration of the load before each measurement
    #[arg(long = "warm-seconds", default_value = "4", value_parser = seconds)]
    pub warm_up: Duration,
    /// The longest load before all measurements, until Java's compilers have settled
    #[arg(long = "warm-first-seconds", default_value = "240", value_parser = seconds)]
    pub first_warm_up: Duration,
    /// The numbers of callers in closed loops, one after the other
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024", value_parser = callers)]
    pub callers: Vec<usize>,
    /// The number of preloaded orders for the experiment `old`; ten million take 13 GB of disk, and
    /// are kept
    #[arg(long, default_value_t = 10_000_000)]
    pub old_orders: i64,
}

impl MeasurementPlan {
    pub fn describe(&self) -> String {
        let (warm, lasting) = (self.warm_up.as_secs(), self.duration.as_secs());
        format!("{} repeats of {lasting} s, each after {warm} s of the same load", self.repeats)
    }
}

fn callers(text: &str) -> Result<usize, String> {
    let count = text.parse().map_err(|_| "it is not a number".to_string())?;
    if (1..=CONNECTIONS_MAX).contains(&count) {
        return Ok(count);
    }
    Err(format!(
        "from 1 to {CONNECTIONS_MAX}: the order service keeps no more connections open, so additional \
         callers would only take turns"
    ))
}
