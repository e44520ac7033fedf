//! What the poller saw last: the state of each instance of each service, and the charts' history.

use std::collections::BTreeMap;
use std::fmt::{self, Display, Formatter};

use chrono::{DateTime, TimeDelta, Utc};

use crate::format;
use crate::metrics::exposition::Samples;
use crate::metrics::window::Window;

/// From here on, the oldest event of an outbox waits for Kafka, and not for the next poll of the relay.
const KAFKA_WAIT_SECONDS_MIN: f64 = 2.0;

/// Kafka's client reports the partitions that it reads once in ten seconds.
const PARTITIONS_KNOWN_AFTER: TimeDelta = TimeDelta::seconds(12);

/// From here on, a service is behind: fewer records are normal traffic.
pub const LAG_MARKED: f64 = 1_000.0;

/// A service counts the dead letters that wait up to this number.
const LETTERS_COUNTED_MAX: f64 = 1_000.0;

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
        DateTime::from_timestamp(self.samples.largest("process_start_time_seconds")? as i64, 0)
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

    /// The partitions that it reads, if it knows them already.
    pub fn partitions(&self, now: DateTime<Utc>) -> Option<f64> {
        if self.started_at().is_some_and(|at| now - at < PARTITIONS_KNOWN_AFTER) {
            return None;
        }
        let partitions = self.samples.all("consumer_partitions").iter().map(|it| it.value);
        partitions.reduce(|sum, number| sum + number)
    }

    fn outbox_age(&self) -> Option<f64> {
        let ages = ["outbox_oldest_seconds", "outbox_slot_lag_seconds"];
        ages.iter().filter_map(|metric| self.samples.largest(metric)).reduce(f64::max)
    }

    /// How long the oldest event has waited for Kafka, if one waits.
    pub fn kafka_wait(&self) -> Option<f64> {
        self.outbox_age().filter(|seconds| *seconds >= KAFKA_WAIT_SECONDS_MIN)
    }

    /// Whether its relay is the active one of the service.
    pub fn relays(&self) -> bool {
        self.samples.largest("relay_active").is_some_and(|active| active > 0.0)
    }
}

impl Snapshot {
    /// Whether services report their partitions, and none of them reads one.
    pub fn reads_nothing(&self) -> bool {
        let partitions = self.services.iter().filter_map(|it| it.partitions(self.at));
        let mut partitions = partitions.peekable();
        partitions.peek().is_some() && partitions.all(|number| number < 1.0)
    }

    /// The dead letters that wait in all services.
    pub fn dead_letters(&self) -> KnownSum {
        KnownSum::new(self.services.iter().map(|it| (&*it.name, it.dead_letters())))
    }
}

impl ServiceState {
    /// Whether any instance is ready.
    pub fn is_ready(&self) -> bool {
        self.instances.iter().any(|instance| instance.readiness == Readiness::Ready)
    }

    /// Who has paused its consumer, if it is paused.
    pub fn paused_by(&self) -> Option<&'static str> {
        self.instances.iter().find_map(InstanceState::paused_by)
    }

    /// The partitions that its instances read, as far as they know it.
    pub fn partitions(&self, now: DateTime<Utc>) -> Option<f64> {
        let partitions = self.instances.iter().filter_map(|it| it.partitions(now));
        partitions.reduce(|sum, number| sum + number)
    }

    /// The dead letters that wait for an operator, if an instance reports them.
    pub fn dead_letters(&self) -> Option<f64> {
        self.largest("dead_letters_waiting")
    }

    /// How long the oldest event has waited for Kafka, if one waits.
    pub fn kafka_wait(&self) -> Option<f64> {
        self.instances.iter().filter_map(InstanceState::kafka_wait).reduce(f64::max)
    }

    /// Whether any instance reports its metrics.
    pub fn reports(&self) -> bool {
        self.instances.iter().any(|instance| instance.samples != Samples::default())
    }

    /// The largest value of a gauge that every instance reports about the whole service.
    pub fn largest(&self, metric: &str) -> Option<f64> {
        let values = self.instances.iter().filter_map(|instance| instance.samples.largest(metric));
        values.reduce(f64::max)
    }

    /// How long the oldest event has waited for Kafka, whether the relay or a connector carries it.
    pub fn outbox_age(&self) -> Option<f64> {
        self.instances.iter().filter_map(InstanceState::outbox_age).reduce(f64::max)
    }

    /// The sum of a gauge that every instance reports about itself.
    pub fn sum(&self, metric: &str) -> Option<f64> {
        let values = self.instances.iter().filter_map(|instance| instance.samples.largest(metric));
        values.reduce(|sum, value| sum + value)
    }

    /// The records that it has not handled, of all topics.
    pub fn lag(&self) -> f64 {
        self.lags().values().map(|(records, _)| records).sum()
    }

    /// Whether it reads each of its topics, so that its lag is known.
    pub fn reads_all(&self) -> bool {
        let lags = self.lags();
        !lags.is_empty() && lags.values().all(|(_, partitions)| *partitions >= 1.0)
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

/// A sum over the services, and those whose part of it is unknown.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownSum {
    /// `None` if no part is known.
    pub sum: Option<f64>,
    unknown: Vec<String>,
}

impl KnownSum {
    pub fn new<'a>(parts: impl Iterator<Item = (&'a str, Option<f64>)>) -> KnownSum {
        let mut all = KnownSum { sum: None, unknown: Vec::new() };
        for (service, part) in parts {
            match part {
                Some(part) => all.sum = Some(all.sum.unwrap_or_default() + part),
                None => all.unknown.push(service.to_string()),
            }
        }
        all
    }
}

/// Such as `1, and stock unknown`.
impl Display for KnownSum {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let Some(sum) = self.sum.map(format::count) else { return write!(out, "unknown") };
        match self.unknown.join(" and ") {
            unknown if unknown.is_empty() => write!(out, "{sum}"),
            unknown => write!(out, "{sum}, and {unknown} unknown"),
        }
    }
}

/// What stands before numbers of dead letters, if a service has stopped to count.
pub fn bound_of_letters(mut numbers: impl Iterator<Item = f64>) -> &'static str {
    if numbers.any(|number| number >= LETTERS_COUNTED_MAX) { "at least " } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_is_unknown_is_named_beside_the_sum_of_the_others() {
        let sum = |parts: &[(&str, Option<f64>)]| KnownSum::new(parts.iter().copied()).to_string();
        let (payment, stock) = (("payment", Some(1_200.0)), ("stock", None));
        assert_eq!(sum(&[payment, ("stock", Some(2.0))]), "1,202");
        assert_eq!(sum(&[payment, stock]), "1,200, and stock unknown");
        assert_eq!(sum(&[("order", None), payment, stock]), "1,200, and order and stock unknown");
        assert_eq!(sum(&[stock]), "unknown");
        assert_eq!(sum(&[]), "unknown");
    }
}
