//! What the poller saw last: the state of each instance of each service, and the charts' history.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};

use crate::metrics::exposition::Samples;
use crate::metrics::window::Window;

/// Everything that the overview shows, as of one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// When the services were asked.
    pub at: DateTime<Utc>,
    pub services: Vec<ServiceState>,
    pub window: Window,
}

/// A service with its instances.
#[derive(Clone, Debug)]
pub struct ServiceState {
    pub name: String,
    pub instances: Vec<InstanceState>,
}

/// An instance, as it answered.
#[derive(Clone, Debug)]
pub struct InstanceState {
    pub name: String,
    pub address: String,
    pub readiness: Readiness,
    pub samples: Samples,
}

/// The answer to `/readyz`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// It answers that it is not ready, and why.
    NotReady(String),
    /// It does not answer.
    Down(String),
}

impl InstanceState {
    /// The version that it reports.
    pub fn version(&self) -> Option<&str> {
        self.samples.all("build_info").first()?.label("version")
    }

    /// When its process began.
    pub fn started_at(&self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(self.samples.value("process_start_time_seconds")? as i64, 0)
    }

    /// Who has paused its consumer, if it is paused.
    pub fn paused_by(&self) -> Option<&'static str> {
        let pauses = self.samples.all("consumer_paused");
        let pause = pauses.iter().find(|pause| pause.value > 0.0)?;
        // An older version names no cause: only its circuit breaker pauses.
        Some(if pause.label("cause") == Some("operator") {
            "an operator"
        } else {
            "its circuit breaker"
        })
    }

    /// Whether its relay is the active one of the service.
    pub fn relays(&self) -> bool {
        self.samples.value("relay_active").is_some_and(|active| active > 0.0)
    }
}

impl ServiceState {
    /// Whether any instance reports its metrics.
    pub fn reports(&self) -> bool {
        self.instances.iter().any(|instance| instance.samples != Samples::default())
    }

    /// The largest value of a gauge that every instance reports about the whole service.
    pub fn largest(&self, metric: &str) -> Option<f64> {
        let values = self.instances.iter().filter_map(|instance| instance.samples.value(metric));
        values.reduce(f64::max)
    }

    /// How long the oldest event has waited for Kafka, whether the relay or a connector carries it.
    pub fn outbox_age(&self) -> Option<f64> {
        let ages = ["outbox_oldest_seconds", "outbox_slot_lag_seconds"];
        ages.iter().filter_map(|metric| self.largest(metric)).reduce(f64::max)
    }

    /// The sum of a gauge that every instance reports about itself.
    pub fn sum(&self, metric: &str) -> Option<f64> {
        let values = self.instances.iter().filter_map(|instance| instance.samples.value(metric));
        values.reduce(|sum, value| sum + value)
    }

    /// The lag of each topic that it consumes, and the number of partitions that are fetched: each instance reports its
    /// own partitions.
    pub fn lags(&self) -> BTreeMap<String, (f64, f64)> {
        let mut lags: BTreeMap<String, (f64, f64)> = BTreeMap::new();
        for InstanceState { samples, .. } in &self.instances {
            for (metric, is_lag) in [("consumer_lag", true), ("consumer_partitions", false)] {
                for sample in samples.all(metric) {
                    let topic = sample.label("topic").unwrap_or("?").to_string();
                    let (lag, partitions) = lags.entry(topic).or_default();
                    *(if is_lag { lag } else { partitions }) += sample.value;
                }
            }
        }
        lags
    }
}
