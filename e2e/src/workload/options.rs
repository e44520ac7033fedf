//! The options of a load: how many orders, for how long, and which share of them is unusual.

use std::time::Duration;

use crate::launcher::console::seconds;

/// What to load with.
#[derive(Clone, Debug, clap::Args)]
pub struct Load {
    /// Orders a second
    #[arg(long = "rate-per-second", default_value_t = 100)]
    pub rate: u32,
    /// For how long
    #[arg(long = "seconds", value_parser = seconds, default_value = "90")]
    pub duration: Duration,
    /// So many orders are cancelled by their customer within a second
    #[arg(long, default_value_t = 5)]
    pub cancelled_percent: u32,
    /// So many orders are placed by a customer who can't pay
    #[arg(long, default_value_t = 5)]
    pub poor_percent: u32,
    /// So many orders want more of an item than there is
    #[arg(long, default_value_t = 5)]
    pub scarce_percent: u32,
    /// So many orders are posted twice with the same key
    #[arg(long, default_value_t = 5)]
    pub duplicated_percent: u32,
    /// So many keys come once more with another order, which has to be refused
    #[arg(long, default_value_t = 2)]
    pub key_reused_percent: u32,
    /// So many clients hang up before they are answered, and ask again
    #[arg(long, default_value_t = 0)]
    pub disconnected_percent: u32,
    /// Lines of an order at most
    #[arg(long = "lines", default_value_t = 4)]
    pub lines_max: usize,
    /// Seed of the orders; random if not given
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long the orders may take to end, after the last one
    #[arg(long = "drain-seconds", value_parser = seconds, default_value = "60")]
    pub drain_timeout: Duration,
}

impl Default for Load {
    fn default() -> Load {
        Load {
            rate: 100,
            duration: Duration::from_secs(90),
            cancelled_percent: 5,
            poor_percent: 5,
            scarce_percent: 5,
            duplicated_percent: 5,
            key_reused_percent: 2,
            disconnected_percent: 0,
            lines_max: 4,
            seed: None,
            drain_timeout: Duration::from_secs(60),
        }
    }
}

impl Load {
    /// How many orders that makes.
    pub fn order_count(&self) -> u64 {
        (f64::from(self.rate) * self.duration.as_secs_f64()).round() as u64
    }
}
