//! What is set, on the command line or by a test.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use clap::Parser;
use openssl::pkey::{PKey, Private};

use crate::lies::{Lies, parse_rate};

/// A carrier that lies at set rates, with a ledger of its own
#[derive(Clone, Parser)]
#[command(name = "carrier")]
pub struct Settings {
    /// What it does: it serves until it is stopped
    #[arg(default_value = "serve", value_parser = ["serve"])]
    pub(crate) command: String,
    /// The directory of the ledger
    #[arg(long, env)]
    pub directory: PathBuf,
    /// Where it listens; the system chooses a port in place of 0
    #[arg(long = "http-addr", env = "HTTP_ADDR", default_value = "127.0.0.1:0")]
    pub address: SocketAddr,
    /// What lies are drawn from
    #[arg(long, env, default_value_t = 0)]
    pub seed: u64,
    #[command(flatten)]
    pub lies: Lies,
    /// How often each lie is told, in place of the single rates
    #[arg(long = "lies", env = "LIES", value_parser = parse_rate)]
    pub(crate) all_lies: Option<f64>,
    /// The longest delay of a late answer
    #[arg(long = "late-seconds", env = "LATE_SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub late_max: Duration,
    /// How long an idempotency key is remembered
    #[arg(long = "key-seconds", env = "KEY_SECONDS", default_value = "86400", value_parser = parse_seconds)]
    pub key_lifetime: Duration,
    /// How long a parcel is booked before it is collected
    #[arg(long = "collect-seconds", env = "COLLECT_SECONDS", default_value = "1", value_parser = parse_seconds)]
    pub collect_after: Duration,
    /// How long a parcel is collected before it is delivered or lost
    #[arg(long = "deliver-seconds", env = "DELIVER_SECONDS", default_value = "1", value_parser = parse_seconds)]
    pub deliver_after: Duration,
    /// How many of the collected parcels are lost, from 0 to 1
    #[arg(long, env, default_value_t = 0.0, value_parser = parse_rate)]
    pub lost_rate: f64,
    /// Where webhooks are posted to; without it, there are none
    #[arg(long, env, requires = "secret")]
    pub webhook_url: Option<String>,
    /// The certificates that the receiver of webhooks is checked against
    #[arg(long, env)]
    pub ca_file: Option<PathBuf>,
    /// What signs webhooks: whsec_ and base64
    #[arg(long, env = "WEBHOOK_SECRET", hide_env_values = true, value_parser = parse_secret)]
    pub secret: Option<PKey<Private>>,
    /// What signed webhooks before; without it, a lie takes a random secret
    #[arg(long, env = "OLD_WEBHOOK_SECRET", hide_env_values = true, value_parser = parse_secret)]
    pub old_secret: Option<PKey<Private>>,
    /// The longest delay of a delayed webhook
    #[arg(long = "webhook-delay-seconds", env = "WEBHOOK_DELAY_SECONDS", default_value = "30", value_parser = parse_seconds)]
    pub webhook_delay_max: Duration,
    /// The pause after the first attempt of a webhook; it doubles up to 64 times this
    #[arg(long = "webhook-pause-seconds", default_value = "0.5", value_parser = parse_seconds)]
    pub webhook_pause: Duration,
}

impl Settings {
    /// Those of the command line and of the environment.
    pub fn read() -> Settings {
        let read = Settings::parse();
        Settings { lies: read.all_lies.map_or(read.lies, Lies::all), ..read }
    }

    /// An honest carrier without webhooks, as the command line would have it.
    pub fn new(directory: &Path) -> Settings {
        Settings::parse_from(["carrier".as_ref(), "--directory".as_ref(), directory.as_os_str()])
    }
}

/// Reads a secret of webhooks: `whsec_` and base64.
pub fn parse_secret(text: &str) -> Result<PKey<Private>> {
    let encoded = text.strip_prefix("whsec_").context("a secret begins with whsec_")?;
    Ok(PKey::hmac(&BASE64_STANDARD.decode(encoded).context("a secret is base64")?)?)
}

fn parse_seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=1e7).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "0 to 10,000,000 seconds".to_string())
}
