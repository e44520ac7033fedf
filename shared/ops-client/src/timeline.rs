//! The timeline of a key: the events that the services published for it, and what became of each at its subscribers.
//! If a service does not answer, the events of the others are still there.

#![allow(missing_docs)]

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, TimeDelta, Utc};
use futures::future::join_all;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use uuid::Uuid;

use crate::client::{OpsClient, Port};
use crate::error::ServiceError;

/// Events that one request may name.
const EVENTS_PER_REQUEST: usize = 50;

/// How long a service knows that it handled an event.
const INBOX_RETENTION: TimeDelta = TimeDelta::days(30);

/// The events of a key, the oldest first.
pub struct Timeline {
    pub steps: Vec<Step>,
    /// The services that did not answer, and why.
    pub silent: BTreeMap<String, String>,
}

/// One event of a timeline.
pub struct Step {
    pub event: PublishedEvent,
    pub publisher: String,
    pub deliveries: Vec<Delivery>,
}

/// An event at one of its subscribers.
#[derive(Debug, PartialEq, Eq)]
pub struct Delivery {
    pub subscriber: String,
    pub state: DeliveryState,
}

/// What became of an event at a subscriber.
#[derive(Debug, PartialEq, Eq)]
pub enum DeliveryState {
    Handled {
        at: DateTime<Utc>,
        attempts: i32,
    },
    DeadLetter {
        id: i64,
        state: String,
        reason: String,
    },
    Waits,
    /// The event is older than what the subscriber's inbox keeps, and so it may have been handled.
    Forgotten,
}

/// An event, as its publisher lists it.
#[derive(Clone, Debug, Deserialize)]
pub struct PublishedEvent {
    pub event_id: Uuid,
    pub topic: String,
    pub occurred_at: DateTime<Utc>,
    /// Whether it waits for Kafka, if its service can tell.
    pub in_outbox: Option<bool>,
}

/// An event, as a subscriber lists it.
#[derive(Clone, Debug, Deserialize)]
struct HandledEvent {
    event_id: Uuid,
    /// When it was handled, if it was.
    received_at: Option<DateTime<Utc>>,
    attempts: Option<i32>,
    /// The newest first.
    dead_letters: Vec<DeadLetterOfEvent>,
}

#[derive(Clone, Debug, Deserialize)]
struct DeadLetterOfEvent {
    dead_letter_id: i64,
    state: String,
    reason: String,
}

#[derive(Deserialize)]
struct PublishedEvents {
    events: Vec<PublishedEvent>,
}

/// What a service says of events. It handles the events of these topics, and no other.
#[derive(Clone, Debug, Deserialize)]
struct HandledEvents {
    topics: Vec<String>,
    events: Vec<HandledEvent>,
}

impl HandledEvent {
    fn into_state(self, is_old: bool) -> DeliveryState {
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
            (None, _) if is_old => DeliveryState::Forgotten,
            (None, _) => DeliveryState::Waits,
        }
    }
}

impl OpsClient<'_> {
    /// Asks all services about the events under a key, which has to be safe in a URL.
    pub async fn timeline(&self, key: &str) -> Timeline {
        let mut silent = BTreeMap::new();
        let path = format!("/published-events?key={key}");
        let published: Vec<(String, PublishedEvents)> = self.ask_all(&path, &mut silent).await;
        let step = |(publisher, PublishedEvents { events }): (String, PublishedEvents)| {
            let step =
                move |event| Step { event, publisher: publisher.clone(), deliveries: vec![] };
            events.into_iter().map(step)
        };
        let mut steps: Vec<Step> = published.into_iter().flat_map(step).collect();
        steps.sort_by_key(|step| step.event.occurred_at);
        steps.truncate(EVENTS_PER_REQUEST);
        if !steps.is_empty() {
            let ids = steps.iter().map(|step| format!("event_id={}", step.event.event_id));
            let path = format!("/handled-events?{}", ids.collect::<Vec<_>>().join("&"));
            let handled: Vec<(String, HandledEvents)> = self.ask_all(&path, &mut silent).await;
            deliver(&mut steps, handled, Utc::now());
        }
        Timeline { steps, silent }
    }

    /// The answer of each service. One that does not answer becomes silent, and is not asked again.
    async fn ask_all<A: DeserializeOwned>(
        &self,
        path: &str,
        silent: &mut BTreeMap<String, String>,
    ) -> Vec<(String, A)> {
        let names = self.services.names.iter().filter(|name| !silent.contains_key(*name));
        let answers = join_all(names.map(async |name| {
            let answer: Result<A, ServiceError> = self.get((name, Port::Admin), path).await;
            (name.clone(), answer)
        }));
        let mut found = Vec::new();
        for (service, answer) in answers.await {
            match answer {
                Ok(answer) => found.push((service, answer)),
                Err(error) => drop(silent.insert(service, error.to_string())),
            }
        }
        found
    }
}

/// Adds what each subscriber did with each event: a service that handles the event's topic.
fn deliver(steps: &mut [Step], handled: Vec<(String, HandledEvents)>, now: DateTime<Utc>) {
    for (subscriber, HandledEvents { topics, events }) in handled {
        let events = events.into_iter().map(|event| (event.event_id, event));
        let mut events: HashMap<Uuid, HandledEvent> = events.collect();
        for Step { event, deliveries, .. } in &mut *steps {
            let is_old = now - event.occurred_at > INBOX_RETENTION;
            let found = events.remove(&event.event_id).filter(|_| topics.contains(&event.topic));
            deliveries.extend(found.map(|found| Delivery {
                subscriber: subscriber.clone(),
                state: found.into_state(is_old),
            }));
        }
    }
}

impl Step {
    /// For how long a delivery took, or waits as of `now`. The clocks of two databases may differ.
    pub fn duration(&self, delivery: &Delivery, now: DateTime<Utc>) -> TimeDelta {
        let until = match delivery.state {
            DeliveryState::Handled { at, .. } => at,
            _ => now,
        };
        (until - self.event.occurred_at).max(TimeDelta::zero())
    }

    /// What the event still waits for, or what went wrong, in sentences.
    pub fn open_work(&self) -> Vec<String> {
        let PublishedEvent { topic, in_outbox, .. } = &self.event;
        let is_in_outbox = *in_outbox == Some(true);
        let mut open = Vec::new();
        if is_in_outbox {
            open.push(format!("{topic} waits in the outbox of {} for Kafka", self.publisher));
        }
        for Delivery { subscriber, state } in &self.deliveries {
            match state {
                DeliveryState::Waits if !is_in_outbox => {
                    open.push(format!("{topic} waits for {subscriber} to handle it"));
                }
                DeliveryState::DeadLetter { id, state, reason } => open.push(format!(
                    "{topic} is dead letter {id} of {subscriber}, {state}: {reason}"
                )),
                _ => {}
            }
        }
        open
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const EVENT_ID: Uuid = Uuid::from_u128(7);

    const AT: &str = "2026-11-27T10:00:00Z";

    fn step() -> Step {
        let event = json!({
            "event_id": EVENT_ID, "topic": "a.done", "occurred_at": AT, "in_outbox": false,
        });
        let event = serde_json::from_value(event).unwrap();
        Step { event, publisher: "a".to_string(), deliveries: Vec::new() }
    }

    fn handled(topic: &str, received_at: Option<&str>, state: Option<&str>) -> HandledEvents {
        let letter = json!({ "dead_letter_id": 9, "state": state, "reason": "because" });
        let event = json!({
            "event_id": EVENT_ID, "received_at": received_at, "attempts": 2,
            "dead_letters": state.map(|_| letter).as_slice(),
        });
        serde_json::from_value(json!({ "topics": ["a.other", topic], "events": [event] })).unwrap()
    }

    #[test]
    fn each_subscriber_has_its_delivery_and_a_dead_letter_counts_unless_it_was_replayed() {
        let mut steps = [step()];
        let at = steps[0].event.occurred_at;
        let answers = [
            ("b", handled("a.done", Some(AT), None)),
            ("c", handled("a.done", None, None)),
            ("d", handled("a.done", None, Some("waiting"))),
            ("e", handled("a.done", Some(AT), Some("replayed"))),
            ("f", handled("a.done", Some(AT), Some("discarded"))),
            // It does not handle the topic.
            ("g", handled("a.begun", None, None)),
        ];
        deliver(&mut steps, answers.map(|(name, event)| (name.to_string(), event)).to_vec(), at);
        let done = DeliveryState::Handled { at, attempts: 2 };
        let dead = ["waiting", "discarded"].map(|state| DeliveryState::DeadLetter {
            id: 9,
            state: state.to_string(),
            reason: "because".to_string(),
        });
        let [step] = &mut steps;
        let states = Vec::from_iter(step.deliveries.iter().map(|it| &it.state));
        assert_eq!(states, [&done, &DeliveryState::Waits, &dead[0], &done, &dead[1]]);
        let mut open = vec![
            "a.done waits for c to handle it",
            "a.done is dead letter 9 of d, waiting: because",
            "a.done is dead letter 9 of f, discarded: because",
        ];
        assert_eq!(step.open_work(), open);
        step.event.in_outbox = Some(true);
        open[0] = "a.done waits in the outbox of a for Kafka";
        assert_eq!(step.open_work(), open);
    }

    #[test]
    fn an_event_that_is_older_than_the_inbox_keeps_is_not_pending() {
        let forgets_at = step().event.occurred_at + INBOX_RETENTION;
        for (now, state, is_pending) in [
            (forgets_at, DeliveryState::Waits, true),
            (forgets_at + TimeDelta::seconds(1), DeliveryState::Forgotten, false),
        ] {
            let mut steps = [step()];
            let answer = handled("a.done", None, None);
            deliver(&mut steps, vec![("b".to_string(), answer)], now);
            assert_eq!(steps[0].deliveries[0].state, state);
            assert_eq!(!steps[0].open_work().is_empty(), is_pending);
        }
    }
}
