//! What is wrong, in sentences: the one region of the overview that a screen reader speaks when it changes. The others
//! change each second, so a sentence here has no number that grows by itself.

use maud::{Markup, html};

use crate::feeds::pending::{PendingOrders, age};
use crate::metrics::snapshot::{InstanceState, Readiness, ServiceState, Snapshot};

/// The spans of time that a sentence names, in seconds.
const SPANS: [i64; 9] = [2, 5, 10, 30, 60, 300, 600, 3_600, 86_400];

pub fn render(snapshot: &Snapshot, pending: Option<&PendingOrders>) -> Markup {
    let found = complaints(snapshot, pending);
    let instances = snapshot.services.iter().map(|service| service.instances.len()).sum::<usize>();
    html! {
        @if !found.is_empty() {
            ul { @for complaint in &found { li { (complaint) } } }
        } @else if instances > 0 {
            p { "All " (instances) " instances are ready." }
        }
    }
}

fn complaints(snapshot: &Snapshot, pending: Option<&PendingOrders>) -> Vec<String> {
    let services = snapshot.services.iter();
    let mut found: Vec<String> = services.clone().flat_map(complaints_of).collect();
    found.extend(kafka_complaint(snapshot));
    if !snapshot.reads_nothing() {
        let is_idle = |it: &&ServiceState| {
            it.partitions(snapshot.at) == Some(0.0) && it.paused_by().is_none()
        };
        let idle = services.filter(is_idle);
        found.extend(idle.map(|it| format!("No instance of {} reads a partition.", it.name)));
    }
    if let Some(seconds) = pending.and_then(PendingOrders::late_seconds) {
        found.push(format!("Orders have been pending for over {}.", age(seconds)));
    }
    found
}

/// The events that wait for Kafka, and whether any service reads from it.
fn kafka_complaint(snapshot: &Snapshot) -> Option<String> {
    let waiting = snapshot.services.iter().filter_map(|it| Some((&*it.name, it.kafka_wait()?)));
    let (names, waits): (Vec<&str>, Vec<f64>) = waiting.unzip();
    let longest = waits.into_iter().reduce(f64::max);
    let span = |longest: f64| SPANS.into_iter().rfind(|span| longest >= *span as f64);
    let waits = longest.and_then(span).map(|seconds| {
        format!("Events of {} have waited for Kafka for over {}", names.join(" and "), age(seconds))
    });
    match (waits, snapshot.reads_nothing()) {
        (Some(waits), true) => Some(format!("{waits}; no service reads a partition.")),
        (Some(waits), false) => Some(format!("{waits}.")),
        (None, true) => Some("No service reads a partition.".to_string()),
        (None, false) => None,
    }
}

fn complaints_of(service: &ServiceState) -> Vec<String> {
    let name = &service.name;
    let is_ready = |instance: &&InstanceState| instance.readiness == Readiness::Ready;
    let ready = service.instances.iter().filter(is_ready).count();
    let mut found = Vec::new();
    if ready == 0 {
        found.push(format!("No instance of {name} is ready."));
    } else if ready < service.instances.len() {
        let others = service.instances.iter().filter(|it| !is_ready(it));
        let names: Vec<&str> = others.map(|instance| &*instance.name).collect();
        found.push(format!("{} is not ready; {ready} of {name} are.", names.join(", ")));
    }
    if let Some(by) = service.paused_by() {
        found.push(format!("The consumer of {name} is paused by {by}."));
    }
    if service.dead_letters().is_some_and(|waiting| waiting > 0.0) {
        found.push(format!("Dead letters of {name} wait for an operator."));
    }
    found
}

#[cfg(test)]
mod tests {
    use chrono::Utc;

    use super::*;
    use crate::feeds::pending::AgeCount;
    use crate::metrics::exposition::Samples;

    /// What a service that has nothing to do sends, as far as the overview reads it.
    const HEALTHY: &str = include_str!("healthy_metrics.txt");

    fn service(readiness: &[Readiness], metrics: &str) -> ServiceState {
        let instances = readiness.iter().enumerate().map(|(nth, readiness)| InstanceState {
            name: format!("stock-{nth}"),
            address: String::new(),
            readiness: readiness.clone(),
            samples: Samples::parse(metrics, |_| true),
        });
        ServiceState { name: "stock".to_string(), instances: instances.collect() }
    }

    fn complaints_about(readiness: &[Readiness], metrics: &str) -> Vec<String> {
        told_of(vec![service(readiness, metrics)])
    }

    fn told_of(services: Vec<ServiceState>) -> Vec<String> {
        complaints(&Snapshot { at: Utc::now(), services, ..Snapshot::default() }, None)
    }

    /// The metrics of a healthy service with other values, and its lines in the opposite sequence as well.
    fn with_values(changed: &[(&str, &str)]) -> [String; 2] {
        let line = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap_or((line, ""));
            let value = changed.iter().find(|it| it.0 == name).map_or(value, |it| it.1);
            format!("{name} {value}")
        };
        let known = |name: &str| HEALTHY.lines().any(|it| it.starts_with(&format!("{name} ")));
        assert!(changed.iter().all(|(name, _)| known(name)), "{changed:?}");
        let lines = Vec::from_iter(HEALTHY.lines().map(line));
        let reversed = Vec::from_iter(lines.iter().rev().cloned());
        [lines.join("\n"), reversed.join("\n")]
    }

    fn down() -> Readiness {
        Readiness::Down("refused".to_string())
    }

    #[test]
    fn each_complaint_is_a_sentence_and_does_not_change_by_itself() {
        let ready = [Readiness::Ready];
        assert_eq!(complaints_about(&ready, HEALTHY), [""; 0]);
        assert_eq!(complaints_about(&[down()], ""), ["No instance of stock is ready."]);
        let operator = ("consumer_paused{cause=\"operator\"}", "1");
        for number in ["3", "4"] {
            for metrics in with_values(&[operator, ("dead_letters_waiting", number)]) {
                let expected = [
                    "stock-0 is not ready; 1 of stock are.",
                    "The consumer of stock is paused by an operator.",
                    "Dead letters of stock wait for an operator.",
                ];
                assert_eq!(complaints_about(&[down(), Readiness::Ready], &metrics), expected);
            }
        }
    }

    #[test]
    fn a_pause_is_told_whatever_its_cause_and_wherever_its_sample_stands() {
        for (cause, by) in [("operator", "an operator"), ("circuit_breaker", "its circuit breaker")]
        {
            let name = format!("consumer_paused{{cause=\"{cause}\"}}");
            for metrics in with_values(&[(&name, "1")]) {
                let expected = format!("The consumer of stock is paused by {by}.");
                assert_eq!(complaints_about(&[Readiness::Ready], &metrics), [expected]);
            }
        }
    }

    #[test]
    fn events_that_wait_for_kafka_and_partitions_that_no_instance_reads_are_told() {
        let partitions = ["orders.created", "orders.cancelled"];
        let partitions = partitions.map(|it| format!("consumer_partitions{{topic=\"{it}\"}}"));
        let unread = partitions.each_ref().map(|name| (&**name, "0"));
        let waits = |seconds| ("outbox_oldest_seconds", seconds);
        let of = |changed: &[(&str, &str)]| {
            let [metrics, reversed] = with_values(changed);
            let found = complaints_about(&[Readiness::Ready], &metrics);
            assert_eq!(found, complaints_about(&[Readiness::Ready], &reversed));
            found
        };
        assert_eq!(of(&[waits("0.4")]), [""; 0], "the next poll of the relay");
        assert_eq!(of(&unread), ["No service reads a partition."]);
        for seconds in ["6.2", "9.9"] {
            let expected = "Events of stock have waited for Kafka for over 5 s; \
                            no service reads a partition.";
            assert_eq!(of(&[unread[0], unread[1], waits(seconds)]), [expected]);
        }
        let waits = of(&[waits("640.1")]);
        assert_eq!(waits, ["Events of stock have waited for Kafka for over 10 min."]);
        assert_eq!(of(&unread[..1]), [""; 0], "the other topic is read");

        let [unread, _] = with_values(&unread);
        let mut other = service(&[Readiness::Ready], HEALTHY);
        other.name = "payment".to_string();
        let found = told_of(vec![service(&[Readiness::Ready], &unread), other]);
        assert_eq!(found, ["No instance of stock reads a partition."]);
        let started = format!("{unread}\nprocess_start_time_seconds {}", Utc::now().timestamp());
        assert_eq!(complaints_about(&[Readiness::Ready], &started), [""; 0], "it knows soon");
    }

    #[test]
    fn orders_that_are_pending_for_over_a_minute_are_told() {
        let told = |by_age: &[(i64, i64)]| {
            let age = |(older_than_seconds, orders): &(i64, i64)| AgeCount {
                older_than_seconds: *older_than_seconds,
                orders: *orders,
            };
            let pending = PendingOrders {
                read_at: Utc::now(),
                pending: 93,
                by_age: by_age.iter().map(age).collect(),
                counted_at_most: 50_000,
                orders: Vec::new(),
            };
            complaints(&Snapshot::default(), Some(&pending))
        };
        assert_eq!(told(&[(10, 93), (60, 0), (600, 0)]), [""; 0]);
        assert_eq!(
            told(&[(10, 93), (60, 1), (600, 0)]),
            ["Orders have been pending for over 1 min."]
        );
        assert_eq!(
            told(&[(10, 93), (60, 9), (600, 2)]),
            ["Orders have been pending for over 10 min."]
        );
    }
}
