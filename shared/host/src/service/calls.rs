//! The systems that a service calls: their settings, and the loop that performs the calls.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
pub use messaging::call_loop::is_final_status;
use messaging::call_loop::{CallLoop, CallPolicy, Target};

use crate::config::env::BadConfiguration;
use crate::http::call_target::HttpTarget;
use crate::service::{Service, ServiceLoop};

/// Beyond every pause of the loop, with room for its statements.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(60);

/// What a target is reached by. [`call_target!`] makes the settings of it.
///
/// [`call_target!`]: crate::call_target
#[derive(Clone, Debug)]
pub struct CallTarget {
    /// The name of the target: what the names of its calls have between `call/` and the dot.
    pub name: &'static str,
    /// The beginning of its variables.
    pub variables: &'static str,
    /// The address that the paths of its calls follow.
    pub url: String,
    /// For how many hours it knows an idempotency key.
    pub key_hours: u64,
    /// How many seconds one try may take.
    pub timeout_seconds: u64,
    /// The first pause between two tries of a call, and the longest, in seconds.
    pub pause_seconds: u64,
    /// The longest pause.
    pub pause_max_seconds: u64,
    /// Calls that are under way at a time, at most.
    pub concurrency: usize,
    /// Which statuses refuse a call for good.
    pub is_final: fn(u16) -> bool,
}

impl CallTarget {
    fn target(&self) -> anyhow::Result<Target> {
        let timeout = Duration::from_secs(self.timeout_seconds);
        let key_age = Duration::from_secs(self.key_hours * 3_600);
        // The last try has ended by then.
        let total_age = key_age.saturating_sub(timeout + key_age / 10);
        let pause_min = Duration::from_secs(self.pause_seconds);
        let pause_max = Duration::from_secs(self.pause_max_seconds);
        let variables = self.variables;
        ensure!(
            pause_min <= pause_max,
            "{variables}_PAUSE_SECONDS is longer than {variables}_PAUSE_MAX_SECONDS"
        );
        let client = HttpTarget::new(&self.url, format!("{variables}_TOKEN"), timeout);
        let client = client.with_context(|| format!("{variables}_URL cannot be used"))?;
        let (concurrency, is_final) = (self.concurrency, self.is_final);
        let policy = CallPolicy { pause_min, pause_max, timeout, total_age, concurrency, is_final };
        Ok(Target { policy, performer: Arc::new(client) })
    }
}

impl Service {
    /// The loop that performs the calls of this service's decisions. A call to a target that is not among these stays
    /// pending.
    ///
    /// # Errors
    /// If the settings of a target cannot be used.
    pub fn calls(
        &self,
        targets: impl IntoIterator<Item = CallTarget>,
    ) -> anyhow::Result<ServiceLoop> {
        let mut by_name = BTreeMap::new();
        for target in targets {
            let made = target.target();
            let made = made.map_err(|error| BadConfiguration::new(format!("{error:#}.")))?;
            by_name.insert(target.name, made);
        }
        let heartbeat = self.heartbeat("calls", HEARTBEAT_TIMEOUT);
        let calls = CallLoop { db: self.db.clone(), heartbeat, targets: by_name };
        Ok(ServiceLoop::new("calls", |stop| calls.run(stop)))
    }
}

/// Declares the settings of a target: a struct for `#[command(flatten)]`, whose variables begin with a word. Its method
/// `target()` is for `Service::calls`.
///
/// ```ignore
/// call_target!(CarrierSettings, "carrier", "CARRIER");
/// ```
#[macro_export]
macro_rules! call_target {
    ($settings:ident, $name:literal, $prefix:literal) => {
        /// Where the calls to this target go, and how.
        #[derive(clap::Args, Clone, Debug)]
        pub struct $settings {
            /// The address that the paths of its calls follow.
            #[arg(id = concat!($name, "-url"), long = concat!($name, "-url"), env = concat!($prefix, "_URL"))]
            url: String,
            /// For how many hours it knows an idempotency key. Calls are tried for nine tenths of it.
            #[arg(id = concat!($name, "-key-hours"), long = concat!($name, "-key-hours"),
                  env = concat!($prefix, "_KEY_HOURS"), value_parser = clap::value_parser!(u64).range(1..=8_760))]
            key_hours: u64,
            /// How many seconds one try may take.
            #[arg(id = concat!($name, "-timeout-seconds"), long = concat!($name, "-timeout-seconds"),
                  env = concat!($prefix, "_TIMEOUT_SECONDS"), default_value = "10",
                  value_parser = clap::value_parser!(u64).range(1..=300))]
            timeout_seconds: u64,
            /// The first pause between two tries, in seconds. Each is about twice as long as the one before.
            #[arg(id = concat!($name, "-pause-seconds"), long = concat!($name, "-pause-seconds"),
                  env = concat!($prefix, "_PAUSE_SECONDS"), default_value = "1",
                  value_parser = clap::value_parser!(u64).range(1..=3_600))]
            pause_seconds: u64,
            /// The longest pause between two tries, in seconds.
            #[arg(id = concat!($name, "-pause-max-seconds"), long = concat!($name, "-pause-max-seconds"),
                  env = concat!($prefix, "_PAUSE_MAX_SECONDS"), default_value = "60",
                  value_parser = clap::value_parser!(u64).range(1..=86_400))]
            pause_max_seconds: u64,
            /// Calls that are under way at a time, at most.
            #[arg(id = concat!($name, "-concurrency"), long = concat!($name, "-concurrency"),
                  env = concat!($prefix, "_CONCURRENCY"), default_value = "10",
                  value_parser = clap::value_parser!(u64).range(1..=1_000))]
            concurrency: u64,
        }

        impl $settings {
            /// The target.
            pub fn target(&self) -> $crate::service::calls::CallTarget {
                $crate::service::calls::CallTarget {
                    name: $name,
                    variables: $prefix,
                    url: self.url.clone(),
                    key_hours: self.key_hours,
                    timeout_seconds: self.timeout_seconds,
                    pause_seconds: self.pause_seconds,
                    pause_max_seconds: self.pause_max_seconds,
                    concurrency: usize::try_from(self.concurrency).unwrap_or(usize::MAX),
                    is_final: $crate::service::calls::is_final_status,
                }
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::env::read_from;

    call_target!(BankSettings, "bank", "BANK");
    call_target!(CarrierSettings, "carrier", "CARRIER");

    #[derive(clap::Parser)]
    struct Settings {
        #[command(flatten)]
        bank: BankSettings,
        #[command(flatten)]
        carrier: CarrierSettings,
    }

    fn read(variables: &[(&str, &str)]) -> Result<Settings, BadConfiguration> {
        let required = [
            ("BANK_URL", "https://bank.example.com/api"),
            ("BANK_KEY_HOURS", "24"),
            ("CARRIER_URL", "http://carrier.example.com"),
            ("CARRIER_KEY_HOURS", "1"),
        ];
        read_from(|name| {
            let mut given = variables.iter().chain(&required);
            given.find(|(known, _)| *known == name).map(|(_, value)| value.to_string())
        })
    }

    #[test]
    fn each_target_has_variables_of_its_own_and_gives_up_before_its_key_is_forgotten() {
        let variables = [("BANK_CONCURRENCY", "3"), ("CARRIER_PAUSE_SECONDS", "7")];
        let Settings { bank, carrier } = read(&variables).unwrap();
        let (bank, carrier) = (bank.target(), carrier.target());
        assert_eq!((bank.name, bank.variables, bank.concurrency), ("bank", "BANK", 3));
        assert_eq!((carrier.name, carrier.concurrency, carrier.pause_seconds), ("carrier", 10, 7));
        let policy = bank.target().unwrap().policy;
        assert_eq!(policy.total_age, Duration::from_secs(24 * 3_600 * 9 / 10 - 10));
        assert_eq!(policy.pause_max, Duration::from_secs(60));
        let is_final =
            [400, 404, 408, 409, 422, 429, 500, 503].map(|status| (policy.is_final)(status));
        assert_eq!(is_final, [true, true, false, false, true, false, false, false]);
    }

    #[test]
    fn a_target_that_cannot_be_called_is_refused() {
        for (variable, value) in [
            ("BANK_URL", "bank"),
            ("BANK_URL", "mailto:bank@example.com"),
            ("BANK_PAUSE_SECONDS", "90"),
        ] {
            let settings = read(&[(variable, value)]).unwrap();
            assert!(settings.bank.target().target().is_err(), "{variable}={value}");
        }
        for (variable, value) in
            [("BANK_KEY_HOURS", "0"), ("BANK_KEY_HOURS", ""), ("BANK_CONCURRENCY", "0")]
        {
            let refused = read(&[(variable, value)]).err().map(|error| error.to_string());
            assert!(refused.is_some_and(|error| error.contains(variable)), "{variable}={value}");
        }
    }
}
