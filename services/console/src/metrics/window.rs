//! The last minutes of the counters, in buckets of some seconds each, for the charts.

use std::collections::{BTreeMap, VecDeque};

use chrono::{DateTime, Utc};

use crate::metrics::exposition::Samples;

/// The length of a bucket, and how many are kept: a quarter of an hour.
pub const BUCKET_SECONDS: i64 = 10;
pub const BUCKETS_MAX: usize = 90;

/// The topics whose events end an order, or begin one, and the metric that counts them where they are decided.
pub const PLACED: &str = "orders.created";
pub const CONFIRMED: &str = "orders.confirmed";
pub const CANCELLED: &str = "orders.cancelled";
pub const DECISIONS: &str = "event_decision_seconds";

/// The increase of the counters within one bucket.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bucket {
    /// Its beginning, in seconds.
    pub start: i64,
    pub placed: f64,
    pub confirmed: f64,
    pub cancelled: f64,
    /// The orders that ended, by the upper bound of their time to a decision, in milliseconds; `u64::MAX` is none.
    pub decisions: BTreeMap<u64, f64>,
}

impl Bucket {
    /// The time within which this share of the orders ended, at most; none if none ended.
    pub fn decision_quantile(&self, share: f64) -> Option<f64> {
        let all: f64 = self.decisions.values().sum();
        if all <= 0.0 {
            return None;
        }
        let (mut below, mut lower) = (0.0, 0.0);
        for (bound, number) in &self.decisions {
            let upper = if *bound == u64::MAX { f64::INFINITY } else { *bound as f64 / 1000.0 };
            if below + number >= share * all && *number > 0.0 {
                let part = (share * all - below) / number;
                // Evenly spread within the bounds, as Prometheus assumes too.
                let is_open = upper.is_infinite();
                return Some(if is_open { upper } else { lower + (upper - lower) * part });
            }
            (below, lower) = (below + number, upper);
        }
        None
    }

    fn add(&mut self, other: &Bucket) {
        self.placed += other.placed;
        self.confirmed += other.confirmed;
        self.cancelled += other.cancelled;
        for (bound, number) in &other.decisions {
            *self.decisions.entry(*bound).or_default() += number;
        }
    }
}

/// The counters of one instance, cumulative since its start.
type Counters = BTreeMap<(String, u64), f64>;

/// The buckets of the last minutes, the oldest first, without gaps.
#[derive(Clone, Debug, Default)]
pub struct Window {
    pub buckets: VecDeque<Bucket>,
    /// The increase of everything since the first poll.
    pub total: Bucket,
    last: BTreeMap<String, Counters>,
}

impl Window {
    /// Adds what the counters of an instance grew by since it was last asked.
    pub fn add(&mut self, instance: &str, samples: &Samples, now: DateTime<Utc>) {
        if *samples == Samples::default() {
            return;
        }
        // A histogram begins with its first event, so an instance without counters counts from zero.
        let counters = read_counters(samples);
        let Some(last) = self.last.insert(instance.to_string(), counters.clone()) else { return };
        let mut grown = Bucket::default();
        for (topic, bounds) in by_topic(&counters, &last) {
            let all = bounds.values().sum::<f64>();
            match topic {
                PLACED => grown.placed += all,
                CONFIRMED => grown.confirmed += all,
                _ => grown.cancelled += all,
            }
            if topic != PLACED {
                bounds.into_iter().for_each(|(bound, number)| {
                    *grown.decisions.entry(bound).or_default() += number;
                });
            }
        }
        self.total.add(&grown);
        self.advance(now);
        if let Some(newest) = self.buckets.back_mut() {
            newest.add(&grown);
        }
    }

    /// Begins a new bucket when it is time, and drops the oldest.
    pub fn advance(&mut self, now: DateTime<Utc>) {
        let start = now.timestamp() / BUCKET_SECONDS * BUCKET_SECONDS;
        let oldest = start - BUCKET_SECONDS * (BUCKETS_MAX as i64 - 1);
        let next = self.buckets.back().map_or(start, |newest| newest.start + BUCKET_SECONDS);
        for start in (next.max(oldest)..=start).step_by(BUCKET_SECONDS as usize) {
            self.buckets.push_back(Bucket { start, ..Bucket::default() });
        }
        self.buckets.retain(|bucket| bucket.start >= oldest);
    }

    /// The sum of the buckets that are complete and not older than this many seconds.
    pub fn recent(&self, seconds: i64, now: DateTime<Utc>) -> (Bucket, i64) {
        let mut sum = Bucket::default();
        let since = now.timestamp() - seconds;
        let recent = self.buckets.iter().filter(|bucket| bucket.start >= since);
        let recent = Vec::from_iter(recent);
        recent.iter().for_each(|bucket| sum.add(bucket));
        let from = recent.first().map_or(now.timestamp(), |bucket| bucket.start);
        (sum, (now.timestamp() - from).max(1))
    }
}

/// The number of events by topic and bound, not cumulative over the bounds.
fn read_counters(samples: &Samples) -> Counters {
    let mut cumulative: BTreeMap<&str, BTreeMap<u64, f64>> = BTreeMap::new();
    for sample in samples.all(&format!("{DECISIONS}_bucket")) {
        let (Some(topic), Some(bound)) = (sample.label("topic"), sample.label("le")) else {
            continue;
        };
        let Some(bound) = bound.parse::<f64>().ok() else { continue };
        let bound = if bound.is_finite() { (bound * 1000.0).round() as u64 } else { u64::MAX };
        if [PLACED, CONFIRMED, CANCELLED].contains(&topic) {
            cumulative.entry(topic).or_default().insert(bound, sample.value);
        }
    }
    let mut counters = Counters::new();
    for (topic, bounds) in cumulative {
        let mut below = 0.0;
        for (bound, up_to) in bounds {
            counters.insert((topic.to_string(), bound), up_to - below);
            below = up_to;
        }
    }
    counters
}

/// The increase by topic and bound. An instance that was restarted counts from zero.
fn by_topic<'a>(counters: &'a Counters, last: &Counters) -> BTreeMap<&'a str, BTreeMap<u64, f64>> {
    let mut grown: BTreeMap<&str, BTreeMap<u64, f64>> = BTreeMap::new();
    for ((topic, bound), number) in counters {
        let before = last.get(&(topic.clone(), *bound)).copied().unwrap_or(0.0);
        let more = if *number < before { *number } else { number - before };
        grown.entry(topic).or_default().insert(*bound, more);
    }
    grown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(created: u32, confirmed: [u32; 3]) -> Samples {
        let line = |topic: &str, bound: &str, number: u32| {
            format!("{DECISIONS}_bucket{{topic=\"{topic}\",le=\"{bound}\"}} {number}\n")
        };
        let text = line(PLACED, "+Inf", created)
            + &line(CONFIRMED, "0.1", confirmed[0])
            + &line(CONFIRMED, "1", confirmed[1])
            + &line(CONFIRMED, "+Inf", confirmed[2]);
        Samples::parse(&text, |_| true)
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn a_bucket_has_what_counters_grew_by_also_after_a_restart() {
        let mut window = Window::default();
        window.add("order", &samples(100, [50, 80, 90]), at(0));
        assert!(window.buckets.is_empty(), "what was before the first look is unknown");
        window.add("order", &samples(110, [55, 87, 98]), at(1));
        window.add("order", &samples(4, [1, 2, 3]), at(2));
        window.add("order", &Samples::default(), at(3));
        window.add("order", &samples(6, [1, 2, 3]), at(35));
        assert_eq!(window.buckets.len(), 4);
        let first = &window.buckets[0];
        assert_eq!((first.placed, first.confirmed, first.cancelled), (14.0, 11.0, 0.0));
        assert_eq!(window.buckets[3].placed, 2.0);
        assert_eq!(window.total.placed, 16.0);
        window.advance(at(3_600));
        assert_eq!(window.buckets.len(), BUCKETS_MAX);
        assert!(window.buckets.iter().all(|bucket| bucket.placed == 0.0));
    }

    #[test]
    fn the_first_event_of_an_instance_that_was_there_before_is_counted() {
        let mut window = Window::default();
        window.add("order", &Samples::parse("relay_active 1\n", |_| true), at(0));
        window.add("order", &samples(3, [1, 1, 2]), at(1));
        assert_eq!((window.total.placed, window.total.confirmed), (3.0, 2.0));
    }

    #[test]
    fn a_quantile_lies_within_the_bounds_of_its_orders() {
        let decisions = BTreeMap::from([(100, 6.0), (1_000, 3.0), (u64::MAX, 1.0)]);
        let bucket = Bucket { decisions, ..Bucket::default() };
        assert_eq!(bucket.decision_quantile(0.3), Some(0.05));
        let p90 = bucket.decision_quantile(0.9).unwrap();
        assert!((p90 - 1.0).abs() < 1e-9, "{p90}");
        assert_eq!(bucket.decision_quantile(0.99), Some(f64::INFINITY));
        assert_eq!(Bucket::default().decision_quantile(0.5), None);
    }
}
