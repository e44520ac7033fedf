//! Consumers that are paused, resumed or moved, and events that are published again.

// The OpenAPI document of the admin port describes the fields.
#![allow(missing_docs)]

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::client::{OpsClient, Port};
use crate::error::ServiceError;

/// Since when a consumer is paused, by whom and why; nothing while it is not.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ConsumerState {
    pub paused_at: Option<DateTime<Utc>>,
    pub cause: Option<String>,
    pub reason: Option<String>,
    pub actor: Option<String>,
}

impl ConsumerState {
    /// By whom it is paused, since when and why; `None` if it is not.
    pub fn pause(&self) -> Option<String> {
        let since = self.paused_at?.format("%Y-%m-%d %H:%M:%S");
        let by = match self.cause.as_deref() {
            Some("operator") => self.actor.as_deref().unwrap_or("an operator"),
            _ => "its circuit breaker",
        };
        Some(format!("by {by} since {since} UTC: {}", self.reason.as_deref().unwrap_or_default()))
    }
}

/// Where to move a consumer: to a time or to an offset.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RewindRequest {
    pub to_time: Option<DateTime<Utc>>,
    pub to_offset: Option<i64>,
    pub topic: Option<String>,
    pub partition: Option<i32>,
    pub reason: String,
}

/// A rewind that every instance applies within seconds.
#[derive(Clone, Debug, Deserialize)]
pub struct Rewind {
    pub inbox: Vec<InboxCount>,
    pub counted_at_most: i64,
}

/// The events of a topic that the inbox knows, so that they have no second effect.
#[derive(Clone, Debug, Deserialize)]
pub struct InboxCount {
    pub topic: String,
    pub events: i64,
}

/// What to republish: everything, unless it names a key or a time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RepublishRequest {
    pub key: Option<String>,
    pub since: Option<DateTime<Utc>>,
    /// `next` of the answer before.
    pub after: Option<String>,
}

/// What one request republished.
#[derive(Clone, Debug, Deserialize)]
pub struct RepublishProgress {
    pub republished: u64,
    pub outbox: i64,
    /// `None` if everything is republished.
    pub next: Option<String>,
}

impl OpsClient<'_> {
    /// Whether the consumer of a service is paused.
    pub async fn consumer(&self, service: &str) -> Result<ConsumerState, ServiceError> {
        self.get((service, Port::Admin), "/consumer").await
    }

    /// Pauses the consumer of every instance.
    pub async fn pause(&self, service: &str, reason: &str) -> Result<ConsumerState, ServiceError> {
        let body = json!({ "reason": reason });
        self.post((service, Port::Admin), "/consumer/pause", Some(&body)).await
    }

    /// Ends the pause of the consumer of every instance.
    pub async fn resume(&self, service: &str) -> Result<ConsumerState, ServiceError> {
        self.post((service, Port::Admin), "/consumer/resume", None::<&()>).await
    }

    /// Moves the consumer to an earlier or a later place.
    pub async fn rewind(&self, service: &str, to: &RewindRequest) -> Result<Rewind, ServiceError> {
        self.post((service, Port::Admin), "/consumer/rewind", Some(to)).await
    }

    /// Republishes for some seconds. It is refused with 404 if nothing was published under the key.
    pub async fn republish(
        &self,
        service: &str,
        what: &RepublishRequest,
    ) -> Result<RepublishProgress, ServiceError> {
        self.post((service, Port::Admin), "/republish", Some(what)).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_says_who_began_it() {
        for (cause, actor, by) in [
            (Some("operator"), Some("ann"), "ann"),
            (Some("operator"), None, "an operator"),
            (Some("circuit_breaker"), None, "its circuit breaker"),
            // An older version names no cause.
            (None, None, "its circuit breaker"),
        ] {
            let [cause, actor, reason] =
                [cause, actor, Some("a copy")].map(|text| text.map(str::to_string));
            let paused_at = Some(DateTime::UNIX_EPOCH);
            let pause = ConsumerState { paused_at, cause, reason, actor }.pause().unwrap();
            assert_eq!(pause, format!("by {by} since 1970-01-01 00:00:00 UTC: a copy"));
        }
        assert_eq!(ConsumerState::default().pause(), None);
    }
}
