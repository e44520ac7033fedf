//! Why the answer of a service is missing, as far as the metrics of all instances tell.

use crate::format;
use crate::metrics::snapshot::{InstanceState, Readiness, ServiceState, Snapshot};

/// From here on, the oldest event of an outbox waits for Kafka, and not for the next poll of the relay.
const OUTBOX_SECONDS_MIN: f64 = 5.0;

/// Everything that can keep the answer of `service` from the decider, the nearest cause first.
pub fn find_causes(snapshot: &Snapshot, decider: &str, service: &str) -> Vec<String> {
    let find = |name: &str| snapshot.services.iter().find(|state| state.name == name);
    let (Some(state), Some(decider)) = (find(service), find(decider)) else { return Vec::new() };
    let mut causes = Vec::new();
    let is_ready = |instance: &InstanceState| instance.readiness == Readiness::Ready;
    if !state.instances.iter().any(is_ready) {
        causes.push(format!("no instance of {service} is ready"));
    }
    causes.extend(waiting_work(state));
    causes.extend(waiting_work(decider));
    causes
}

/// What waits in a service: events for Kafka, records for its consumer, dead letters for an operator.
fn waiting_work(state: &ServiceState) -> Vec<String> {
    let name = &state.name;
    let mut found = Vec::new();
    if let Some(by) = state.instances.iter().find_map(InstanceState::paused_by) {
        found.push(format!("the consumer of {name} is paused by {by}"));
    }
    if let Some(seconds) = state.outbox_age()
        && seconds >= OUTBOX_SECONDS_MIN
    {
        let waits = format::span(seconds);
        found.push(format!("the oldest event of {name} has waited for Kafka for {waits}"));
    }
    let lag: f64 = state.lags().values().map(|(records, _)| records).sum();
    if lag >= 1.0 {
        found.push(format!("{name} has {} records to handle", format::count(lag)));
    }
    if let Some(letters) = state.largest("dead_letters_waiting")
        && letters >= 1.0
    {
        let letters = format::count(letters);
        found.push(format!("{letters} dead letters of {name} wait for an operator"));
    }
    found
}
