//! Events: facts with a topic, a schema and a key; the Avro codec that writes and reads them; and what a handler
//! gets and returns. An event is declared once, by `#[derive(Event)]` on its struct, with all that its publisher, the
//! relay and the command that applies contracts need. Who reads it follows from the handlers of the services.
//!
//! Promise: an event has exactly the schema of its topic. A struct whose fields differ from that schema breaks
//! that promise; the contract tests fail then.

pub mod avro;
pub(crate) mod call;
mod avro_timestamps;
pub mod declared;
mod handler;
mod outcome;
mod schema_bounds;
mod subscriptions;
pub(crate) mod task;
pub(crate) mod timer;
mod topic;
mod undecodable;
pub(crate) mod webhook;

use serde::{Serialize, de::DeserializeOwned};

pub use crate::event::call::{
    Answered, CALL_PREFIX, Call, CallResult, MakeCall, Method, Refused, Request, SettleCalls,
    TASK_PREFIX, Unknown, target_of,
};
pub use crate::event::declared::{DeclaredEvent, declared_events, topics};
pub use crate::event::handler::response_id;
pub use crate::event::handler::{HandlerContext, HandlerResult, Unprocessable};
pub use crate::event::outcome::{Effects, Outcome, largest};
pub use crate::event::subscriptions::Subscriptions;
pub use crate::event::task::{AnsweredTask, Choice, CloseTasks, OpenTask, Question, Task};
pub use crate::event::timer::{CancelTimer, SetTimer, TIMER_PREFIX, Timer, TimerKey};
pub use crate::event::topic::{
    DataClass, FACT_DAYS, Isolation, PARTITIONS, PERSONAL_DAYS_MAX, Retention, Topic,
};
pub use crate::event::webhook::{WEBHOOK_PREFIX, Webhook};

/// A fact that one service publishes and others handle.
///
/// The struct is written and read by serde with exactly the schema of its topic: its name is the
/// record's name, its fields are the record's fields. `#[derive(Event)]` implements the trait, and makes the topic
/// known to the program ([`topics`]).
pub trait Event: Serialize + DeserializeOwned + Send + Sync + 'static {
    /// The topic of the event.
    fn topic() -> &'static Topic;
    /// The key: a service publishes the events of one key in the order in which it made them.
    fn key(&self) -> String;
}

/// Whether a record with this topic was scheduled: a timer, a delivery of a webhook, or what came back of a call or a
/// task. No topic of Kafka has a slash.
pub fn is_scheduled(topic: &str) -> bool {
    topic.contains('/')
}

/// An event on its way into the outbox: encoded, but without an envelope yet.
#[derive(Debug)]
pub struct Outgoing {
    /// Its topic.
    pub topic: &'static Topic,
    /// Its key.
    pub key: String,
    /// Its Avro body, without the wire header, which the relay adds.
    pub body: Vec<u8>,
}

impl Outgoing {
    /// Encodes an event with its topic's own schema.
    ///
    /// # Panics
    /// If the struct does not fit its schema, which the contract tests rule out.
    pub fn from_event<E: Event>(event: &E) -> Outgoing {
        let body = E::topic().codec().encode(event).expect("the struct fits its schema");
        Outgoing { topic: E::topic(), key: event.key(), body }
    }
}
