//! The timeline of an order: its events, the service that published each, and what became of it at each subscriber.
//! The control room requests it from the admin ports of the services. If one does not answer, the events of the others
//! are still shown.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use futures::future::join_all;
use serde::Deserialize;

use crate::app::App;
use crate::operators::Operator;
use crate::services::{Port, ServiceError};

/// Events that one request may name.
const EVENTS_PER_REQUEST: usize = 50;

/// The events of an order, the oldest first.
pub struct Timeline {
    pub steps: Vec<Step>,
    /// The services that did not answer, and why.
    pub silent: BTreeMap<String, String>,
}

/// One event of the order.
pub struct Step {
    pub event_id: String,
    pub topic: String,
    pub publisher: String,
    pub occurred_at: DateTime<Utc>,
    /// Whether it waits for Kafka, if its service can tell.
    pub in_outbox: Option<bool>,
    pub deliveries: Vec<Delivery>,
}

/// An event at one of its subscribers.
pub struct Delivery {
    pub subscriber: String,
    pub state: DeliveryState,
}

#[derive(Debug, PartialEq, Eq)]
pub enum DeliveryState {
    Handled {
        at: DateTime<Utc>,
        attempts: i64,
    },
    DeadLetter {
        id: i64,
        state: String,
        reason: String,
    },
    Waits,
    /// The subscriber does not answer.
    Unknown,
}

#[derive(Deserialize)]
struct PublishedEvents {
    events: Vec<PublishedEvent>,
}

#[derive(Deserialize)]
struct PublishedEvent {
    event_id: String,
    topic: String,
    subscribers: Vec<String>,
    occurred_at: DateTime<Utc>,
    in_outbox: Option<bool>,
}

#[derive(Deserialize)]
struct HandledEvents {
    events: Vec<HandledEvent>,
}

#[derive(Deserialize)]
pub struct HandledEvent {
    event_id: String,
    received_at: Option<DateTime<Utc>>,
    attempts: Option<i64>,
    dead_letters: Vec<DeadLetter>,
}

#[derive(Deserialize)]
struct DeadLetter {
    dead_letter_id: i64,
    state: String,
    reason: String,
}

impl HandledEvent {
    fn into_state(self) -> DeliveryState {
        let letter = self.dead_letters.into_iter().next();
        match (self.received_at, letter) {
            // A discarded event has a row in the inbox too.
            (_, Some(letter)) if letter.state != "replayed" => DeliveryState::DeadLetter {
                id: letter.dead_letter_id,
                state: letter.state,
                reason: letter.reason,
            },
            (Some(at), _) => {
                DeliveryState::Handled { at, attempts: self.attempts.unwrap_or_default() }
            }
            (None, _) => DeliveryState::Waits,
        }
    }
}

/// Asks all services about the events under a key, which has to be safe in a URL.
pub async fn read(app: &App, operator: &Operator, key: &str) -> Timeline {
    let mut timeline = Timeline { steps: Vec::new(), silent: BTreeMap::new() };
    let path = format!("/published-events?key={key}");
    let mut subscribers = Vec::new();
    for (service, answer) in
        ask_all::<PublishedEvents>(app, operator, &path, &BTreeMap::new()).await
    {
        match answer {
            Err(error) => drop(timeline.silent.insert(service, error.to_string())),
            Ok(PublishedEvents { events }) => {
                for event in events {
                    subscribers.push((event.event_id.clone(), event.subscribers));
                    timeline.steps.push(Step {
                        event_id: event.event_id,
                        topic: event.topic,
                        publisher: service.clone(),
                        occurred_at: event.occurred_at,
                        in_outbox: event.in_outbox,
                        deliveries: Vec::new(),
                    });
                }
            }
        }
    }
    timeline.steps.sort_by_key(|step| step.occurred_at);
    timeline.steps.truncate(EVENTS_PER_REQUEST);
    if timeline.steps.is_empty() {
        return timeline;
    }
    let ids = timeline.steps.iter().map(|step| format!("event_id={}", step.event_id));
    let path = format!("/handled-events?{}", ids.collect::<Vec<_>>().join("&"));
    let mut handled = HashMap::new();
    // A service that was silent once is not waited for again.
    let answers = ask_all::<HandledEvents>(app, operator, &path, &timeline.silent).await;
    for (service, answer) in answers {
        match answer {
            Err(error) => drop(timeline.silent.insert(service, error.to_string())),
            Ok(HandledEvents { events }) => {
                let events = events.into_iter();
                handled.extend(events.map(|it| ((service.clone(), it.event_id.clone()), it)));
            }
        }
    }
    let subscribers: HashMap<String, Vec<String>> = subscribers.into_iter().collect();
    for step in &mut timeline.steps {
        let names = subscribers.get(&step.event_id).into_iter().flatten();
        step.deliveries = names
            .map(|subscriber| {
                let found = handled.remove(&(subscriber.clone(), step.event_id.clone()));
                let state = found.map_or(DeliveryState::Unknown, HandledEvent::into_state);
                Delivery { subscriber: subscriber.clone(), state }
            })
            .collect();
    }
    timeline
}

type Answers<T> = Vec<(String, Result<T, ServiceError>)>;

async fn ask_all<T: serde::de::DeserializeOwned>(
    app: &App,
    operator: &Operator,
    path: &str,
    silent: &BTreeMap<String, String>,
) -> Answers<T> {
    let names = app.services.names.iter().filter(|name| !silent.contains_key(*name));
    join_all(names.map(async |name| {
        (name.clone(), app.services.get(operator, (name, Port::Admin), path).await)
    }))
    .await
}

impl Step {
    /// For how long a delivery took, or waits as of `now`, in seconds.
    pub fn duration(&self, delivery: &Delivery, now: DateTime<Utc>) -> f64 {
        let until = match delivery.state {
            DeliveryState::Handled { at, .. } => at,
            _ => now,
        };
        // The clocks of two databases may differ.
        (until - self.occurred_at).to_std().unwrap_or_default().as_secs_f64()
    }

    /// What the event still waits for, or what went wrong, in sentences.
    pub fn open_work(&self) -> Vec<String> {
        let topic = &self.topic;
        let mut open = Vec::new();
        if self.in_outbox == Some(true) {
            open.push(format!("{topic} waits in the outbox of {} for Kafka", self.publisher));
        }
        for Delivery { subscriber, state } in &self.deliveries {
            match state {
                DeliveryState::Handled { .. } | DeliveryState::Unknown => {}
                DeliveryState::Waits if self.in_outbox == Some(true) => {}
                DeliveryState::Waits => {
                    open.push(format!("{topic} waits for {subscriber} to handle it"))
                }
                DeliveryState::DeadLetter { id, state, .. } => {
                    open.push(format!("{topic} is dead letter {id} of {subscriber}, {state}"));
                }
            }
        }
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handled(received_at: Option<&str>, letters: &[(&str, i64)]) -> DeliveryState {
        let letter = |(state, id): &(&str, i64)| DeadLetter {
            dead_letter_id: *id,
            state: state.to_string(),
            reason: "because".to_string(),
        };
        HandledEvent {
            event_id: String::new(),
            received_at: received_at.map(|at| at.parse().unwrap()),
            attempts: received_at.map(|_| 2),
            dead_letters: letters.iter().map(letter).collect(),
        }
        .into_state()
    }

    #[test]
    fn the_newest_dead_letter_counts_unless_it_was_replayed() {
        let at = "2026-11-27T10:00:00Z";
        let done = DeliveryState::Handled { at: at.parse().unwrap(), attempts: 2 };
        let dead = |id, state: &str| DeliveryState::DeadLetter {
            id,
            state: state.to_string(),
            reason: "because".to_string(),
        };
        assert_eq!(handled(None, &[]), DeliveryState::Waits);
        assert_eq!(handled(Some(at), &[]), done);
        assert_eq!(handled(None, &[("waiting", 7)]), dead(7, "waiting"));
        assert_eq!(handled(Some(at), &[("replayed", 7)]), done);
        assert_eq!(handled(Some(at), &[("discarded", 7)]), dead(7, "discarded"));
    }
}
