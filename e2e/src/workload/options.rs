//! The options of a load: rate, duration, and the share of unusual orders.

use std::time::Duration;

use clap::Parser;

use crate::console::seconds;

/// Options of a load.
#[derive(Clone, Debug, clap::Args)]
pub struct Load {
    /// Orders a second
    #[arg(long = "rate-per-second", default_value_t = 100)]
    pub rate: u32,
    /// How long orders are placed
    #[arg(long = "seconds", value_parser = seconds, default_value = "90")]
    pub duration: Duration,
    /// Percentage of orders that their customer cancels within a second
    #[arg(long, default_value_t = 5)]
    pub cancelled_percent: u32,
    /// Percentage of orders of a customer who cannot pay
    #[arg(long, default_value_t = 5)]
    pub poor_percent: u32,
    /// Percentage of orders for more units than stock has
    #[arg(long, default_value_t = 5)]
    pub scarce_percent: u32,
    /// Percentage of orders that are posted twice with the same key
    #[arg(long, default_value_t = 5)]
    pub duplicated_percent: u32,
    /// Percentage of keys that are used again for another order, which must be refused
    #[arg(long, default_value_t = 2)]
    pub key_reused_percent: u32,
    /// Percentage of clients that disconnect before the response, and repeat the request
    #[arg(long, default_value_t = 0)]
    pub disconnected_percent: u32,
    /// Largest number of lines of an order
    #[arg(long = "lines", default_value_t = 4)]
    pub lines_max: usize,
    /// Seed of the orders; random by default
    #[arg(long)]
    pub seed: Option<u64>,
    /// How long the orders may take to end, after the last one
    #[arg(long = "drain-seconds", value_parser = seconds, default_value = "60")]
    pub drain_timeout: Duration,
}

/// The defaults of the options.
impl Default for Load {
    fn default() -> Load {
        #[derive(clap::Parser)]
        struct NoArguments {
            #[command(flatten)]
            load: Load,
        }
        NoArguments::parse_from([""]).load
    }
}

impl Load {
    /// Clients that cancel, repeat and disconnect more often than usual, with larger orders.
    pub fn unruly(seed: u64) -> Load {
        Load {
            cancelled_percent: 10,
            duplicated_percent: 20,
            disconnected_percent: 2,
            lines_max: 8,
            seed: Some(seed),
            ..Load::default()
        }
    }

    /// The number of orders.
    pub fn order_count(&self) -> u64 {
        (f64::from(self.rate) * self.duration.as_secs_f64()).round() as u64
    }
}
