//! Dead letters: listed, read, replayed and discarded.

// The OpenAPI document of the admin port describes the fields.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use chrono::{DateTime, Utc};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::client::{OpsClient, Port};
use crate::error::ServiceError;

/// The state of a dead letter that no operator has settled.
pub const WAITING: &str = "waiting";

/// Which dead letters are meant. What is empty or `None` excludes none, except that an empty state means those that
/// wait.
#[derive(Clone, Debug, Default, Serialize)]
pub struct DeadLetterFilter {
    /// `waiting`, `replayed`, `discarded` or `all`.
    pub state: String,
    pub topic: String,
    pub kind: String,
    pub key: String,
    /// A part of the reason, in upper or lower case.
    pub reason: String,
    pub since: Option<DateTime<Utc>>,
    pub until: Option<DateTime<Utc>>,
    /// Those after this id: `next` of the page before.
    pub after: Option<i64>,
}

impl DeadLetterFilter {
    /// The path of a page, with the parameters that are set.
    fn path(&self, limit: usize) -> String {
        let mut url = Url::parse("http://service/dead-letters").expect("the URL is well formed");
        let fields = serde_json::to_value(self).unwrap_or_default();
        let set =
            fields.as_object().into_iter().flatten().filter_map(|(name, value)| match value {
                Value::Null => None,
                Value::String(text) if text.is_empty() => None,
                Value::String(text) => Some((name, text.clone())),
                other => Some((name, other.to_string())),
            });
        url.query_pairs_mut().append_pair("limit", &limit.to_string()).extend_pairs(set);
        format!("{}?{}", url.path(), url.query().unwrap_or_default())
    }
}

/// A page of dead letters, the oldest first.
#[derive(Clone, Debug, Deserialize)]
pub struct DeadLetterPage {
    /// The number of those that wait and match, on any page.
    pub waiting: i64,
    /// Those of this page.
    pub dead_letters: Vec<DeadLetterSummary>,
    /// The value of `after` for the next page, if there is one.
    pub next: Option<i64>,
}

/// A dead letter in a list.
#[derive(Clone, Debug, Deserialize)]
pub struct DeadLetterSummary {
    pub dead_letter_id: i64,
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub event_id: Option<Uuid>,
    pub key: Option<String>,
    /// What kind of failure it was; further kinds may be added.
    pub kind: String,
    /// Why it could not be handled, in a sentence.
    pub reason: String,
    pub state: String,
    pub received_at: DateTime<Utc>,
    pub settled_at: Option<DateTime<Utc>>,
    /// Who settled it, if the service knows its callers.
    pub actor: Option<String>,
}

impl DeadLetterSummary {
    /// Whether no operator has settled it.
    pub fn is_waiting(&self) -> bool {
        self.state == WAITING
    }

    /// The place of its record, such as `orders.created[2]@89`.
    pub fn position(&self) -> String {
        format!("{}[{}]@{}", self.topic, self.partition, self.offset)
    }
}

/// Everything that is known of a dead letter.
#[derive(Clone, Debug, Deserialize)]
pub struct DeadLetter {
    #[serde(flatten)]
    pub summary: DeadLetterSummary,
    pub cluster: String,
    pub attempts: i32,
    pub traceparent: Option<String>,
    pub headers: BTreeMap<String, Option<String>>,
    /// The record in base64.
    pub record: Option<String>,
    /// The event, if its record can be decoded.
    pub event: Option<Value>,
    /// The schema with which it was decoded.
    pub read_with: Option<String>,
    /// Why it could not be decoded, or not with the schema that the record names.
    pub unreadable: Option<String>,
    pub discard_reason: Option<String>,
    /// What a discard gives up, while it waits.
    pub discard_impact: Option<DiscardImpact>,
}

/// What a discard gives up.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct DiscardImpact {
    /// What will then never happen.
    pub consequence: String,
    /// What may be done about it.
    pub remedy: Option<Remedy>,
    /// What is written off with it: a discard has to accept it.
    pub write_offs: Vec<WriteOff>,
}

/// A request to the API of a service that limits the damage.
#[derive(Clone, Debug, Deserialize)]
pub struct Remedy {
    /// What it does, in a sentence.
    pub description: String,
    pub service: String,
    pub method: String,
    pub path: String,
}

/// Something of value that is given up.
#[derive(Clone, Debug, Deserialize)]
pub struct WriteOff {
    pub what: String,
    pub amount: i64,
    pub unit: String,
}

/// The answer to a replay or a discard.
#[derive(Clone, Debug, Deserialize)]
pub struct Settled {
    outcome: String,
}

impl Display for Settled {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match &*self.outcome {
            "replayed" => "Replayed: the event had its effect now.",
            "handled_before" => "The event had its effect in another delivery, so nothing is lost.",
            "discarded" => "Discarded: the event is given up.",
            "discarded_before" => "The event was discarded with another dead letter.",
            "done_before" => "This was already done; nothing changed.",
            other => return write!(out, "Settled: {other}."),
        })
    }
}

/// What one request of a replay of all did.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ReplayedPage {
    /// Those that were replayed.
    pub replayed: u64,
    /// Those that would be dead letters again.
    pub still_unprocessable: u64,
    /// The value of `after` with which a request reaches the others.
    pub next: Option<i64>,
}

impl OpsClient<'_> {
    /// A page of the dead letters of a service.
    pub async fn dead_letters(
        &self,
        service: &str,
        filter: &DeadLetterFilter,
        limit: usize,
    ) -> Result<DeadLetterPage, ServiceError> {
        self.get((service, Port::Admin), &filter.path(limit)).await
    }

    /// One dead letter. Its service may wait for the registry.
    pub async fn dead_letter(&self, service: &str, id: i64) -> Result<DeadLetter, ServiceError> {
        self.clone().patient().get((service, Port::Admin), &format!("/dead-letters/{id}")).await
    }

    /// Replays a dead letter. It is refused with 409 if it would be a dead letter again, or was discarded.
    pub async fn replay(&self, service: &str, id: i64) -> Result<Settled, ServiceError> {
        let path = format!("/dead-letters/{id}/replay");
        self.post((service, Port::Admin), &path, None::<&()>).await
    }

    /// Replays those that wait, after one of them and as many as one request does.
    pub async fn replay_after(
        &self,
        service: &str,
        after: i64,
    ) -> Result<ReplayedPage, ServiceError> {
        let body = json!({ "after": after });
        self.post((service, Port::Admin), "/dead-letters/replay", Some(&body)).await
    }

    /// Discards a dead letter for good. It is refused with the kind `write-off-needed` unless its write-offs are accepted.
    pub async fn discard(
        &self,
        service: &str,
        id: i64,
        reason: &str,
        write_off: bool,
    ) -> Result<Settled, ServiceError> {
        let path = format!("/dead-letters/{id}/discard");
        let body = json!({ "reason": reason, "write_off": write_off });
        self.post((service, Port::Admin), &path, Some(&body)).await
    }

    /// Sends the request of a remedy.
    pub async fn take(&self, remedy: &Remedy) -> Result<(), ServiceError> {
        let place = (&*remedy.service, Port::Api);
        self.post::<Value>(place, &remedy.path, None::<&()>).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_asked_for_with_every_field_of_the_filter_that_is_set() {
        assert_eq!(DeadLetterFilter::default().path(1), "/dead-letters?limit=1");
        let filter = DeadLetterFilter {
            state: "all".to_string(),
            reason: "a & b".to_string(),
            since: Some(DateTime::UNIX_EPOCH),
            after: Some(7),
            ..DeadLetterFilter::default()
        };
        let expected = "/dead-letters?limit=200&after=7&reason=a+%26+b\
                        &since=1970-01-01T00%3A00%3A00Z&state=all";
        assert_eq!(filter.path(200), expected);
    }
}
