//! Why the answer of a service is missing, as far as the metrics of all instances tell.

use crate::format;
use crate::metrics::snapshot::{LAG_MARKED, ServiceState, Snapshot, bound_of_letters};

/// Everything that can keep the answer of `service` from the decider, the nearest cause first: the way of the order to
/// the service, the service, and the way of its answer back.
pub fn find_causes(snapshot: &Snapshot, decider: &str, service: &str) -> Vec<String> {
    let find = |name: &str| snapshot.services.iter().find(|state| state.name == name);
    let (Some(state), Some(decider)) = (find(service), find(decider)) else { return Vec::new() };
    let unready = || Some(format!("no instance of {service} is ready"));
    let causes = [
        unready().filter(|_| !state.is_ready()),
        pause(state),
        events_for_kafka(decider),
        unread_partitions(state, snapshot),
        late_records(state),
        events_for_kafka(state),
        pause(decider),
        unread_partitions(decider, snapshot),
        late_records(decider),
    ];
    causes.into_iter().flatten().collect()
}

/// The dead letters of a service. They are a cause for the orders whose events they are, and for no others.
pub fn dead_letters(snapshot: &Snapshot, service: &str) -> Option<String> {
    let state = snapshot.services.iter().find(|state| state.name == service)?;
    let letters = state.dead_letters().filter(|letters| *letters >= 1.0)?;
    let number = format!("{}{}", bound_of_letters([letters].into_iter()), format::count(letters));
    Some(match letters {
        1.0 => format!("1 dead letter of {service} waits for an operator"),
        _ => format!("{number} dead letters of {service} wait for an operator"),
    })
}

fn pause(state: &ServiceState) -> Option<String> {
    Some(format!("the consumer of {} is paused by {}", state.name, state.paused_by()?))
}

fn events_for_kafka(state: &ServiceState) -> Option<String> {
    let waits = format::span(state.kafka_wait()?);
    Some(format!("the oldest event of {} has waited for Kafka for {waits}", state.name))
}

fn unread_partitions(state: &ServiceState, snapshot: &Snapshot) -> Option<String> {
    state.partitions(snapshot.at).filter(|number| *number < 1.0)?;
    Some(format!("no instance of {} reads a partition", state.name))
}

fn late_records(state: &ServiceState) -> Option<String> {
    let lag = Some(state.lag()).filter(|lag| *lag >= LAG_MARKED)?;
    Some(format!("{} has {} records to handle", state.name, format::count(lag)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::exposition::Samples;
    use crate::metrics::snapshot::{InstanceState, Readiness};

    fn service(name: &str, metrics: &str) -> ServiceState {
        let instance = InstanceState {
            name: name.to_string(),
            address: String::new(),
            readiness: Readiness::Ready,
            samples: Samples::parse(metrics, |_| true),
        };
        ServiceState { name: name.to_string(), instances: vec![instance] }
    }

    fn causes(order: &str, payment: &str) -> Vec<String> {
        let services = vec![service("order", order), service("payment", payment)];
        find_causes(&Snapshot { services, ..Snapshot::default() }, "order", "payment")
    }

    #[test]
    fn the_nearest_cause_comes_first_and_neither_traffic_nor_another_dead_letter_is_one() {
        let reads = "consumer_partitions{topic=\"a\"} 3\nconsumer_lag{topic=\"a\"} 6\n";
        let letter = format!("{reads}dead_letters_waiting 1\n");
        assert_eq!(causes(reads, &letter), [""; 0]);
        let waits = format!("{reads}outbox_oldest_seconds 7\ndead_letters_waiting 1\n");
        let metrics = "consumer_partitions{topic=\"a\"} 0\nconsumer_lag{topic=\"a\"} 2400\n";
        let expected = [
            "the oldest event of order has waited for Kafka for 7.0 s",
            "no instance of payment reads a partition",
            "payment has 2,400 records to handle",
        ];
        assert_eq!(causes(&waits, metrics), expected);
        let paused = "consumer_paused{cause=\"operator\"} 0\n\
                      consumer_paused{cause=\"circuit_breaker\"} 1\n";
        let expected = "the consumer of payment is paused by its circuit breaker";
        assert_eq!(causes(&waits, paused)[0], expected);
    }
}
