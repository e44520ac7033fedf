//! What the relay does not try for a while: topics, keys whose records were rejected, and a registry that does not
//! answer.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use metrics::counter;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use tracing::warn;

use crate::flow::backoff::RetryBackoff;
use crate::telemetry::log_throttle::LogThrottle;

/// How long a topic backs off after the broker or the registry refused it.
const TOPIC_BACKOFF: Duration = Duration::from_secs(2);

/// How long a key backs off whose record itself was refused. Each refusal costs all other keys a pause: an
/// idempotent producer starts a new epoch after it.
const KEY_BACKOFF: RetryBackoff =
    RetryBackoff { delay_min: Duration::from_secs(3), delay_max: Duration::from_secs(60) };

/// Keys that back off, at most. With more refusals than this, the cause is not in single records: each further
/// one makes its topic back off, which needs no memory and no part of a poll for every key.
const BACKOFF_KEYS_MAX: usize = 1_000;

#[derive(Default)]
pub(super) struct Backoff {
    /// By topic, until when.
    topics: HashMap<String, Instant>,
    /// By key, until when, and after how many refusals.
    keys: HashMap<String, (Instant, u32)>,
    /// The registry did not answer: it gets no request before this time.
    registry_retry_at: Option<Instant>,
    log_throttle: LogThrottle,
}

impl Backoff {
    /// Ends the backoff of topics whose time is over. Until then a topic backs off.
    pub(super) fn release_topics(&mut self, now: Instant) {
        self.topics.retain(|_, until| *until > now);
    }

    pub(super) fn waiting_topics(&self) -> impl Iterator<Item = &String> {
        self.topics.keys()
    }

    pub(super) fn contains_topic(&self, topic: &str) -> bool {
        self.topics.contains_key(topic)
    }

    pub(super) fn waiting_keys(&self, now: Instant) -> impl Iterator<Item = &String> {
        self.keys.iter().filter(move |(_, (until, _))| *until > now).map(|(key, _)| key)
    }

    /// Records that a record of this key was written: its next refusal counts as its first.
    pub(super) fn on_persisted(&mut self, key: &str) {
        self.keys.remove(key);
    }

    /// Makes the key or the topic of a record back off that was not written.
    pub(super) fn on_not_persisted(&mut self, topic: &str, key: &str, error: &KafkaError) {
        let room = self.keys.len() < BACKOFF_KEYS_MAX || self.keys.contains_key(key);
        match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::MessageSizeTooLarge
                | RDKafkaErrorCode::InvalidMessage
                | RDKafkaErrorCode::InvalidRecord
                | RDKafkaErrorCode::InvalidMessageSize,
            ) if room => {
                warn!("a record for {topic} was rejected, so its key {key} backs off: {error}");
                let refusals = self.keys.get(key).map_or(0, |(_, refusals)| *refusals) + 1;
                let until = Instant::now() + KEY_BACKOFF.pause_after(refusals);
                self.keys.insert(key.to_owned(), (until, refusals));
            }
            _ => self.back_off_topic(topic, &error.to_string()),
        }
    }

    pub(super) fn back_off_topic(&mut self, topic: &str, because: &str) {
        if self.topics.insert(topic.to_string(), Instant::now() + TOPIC_BACKOFF).is_some() {
            return;
        }
        counter!("relay_topic_backoffs_total", "topic" => topic.to_string()).increment(1);
        if self.log_throttle.should_log(topic, because) {
            warn!("the topic {topic} backs off: {because}");
        }
    }

    pub(super) fn back_off_registry(&mut self) {
        self.registry_retry_at = Some(Instant::now() + TOPIC_BACKOFF);
    }

    pub(super) fn is_registry_backed_off(&self) -> bool {
        self.registry_retry_at.is_some_and(|until| until > Instant::now())
    }
}
