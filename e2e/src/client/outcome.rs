//! The meaning of a response to a client: one of three outcomes, as docs/api.md promises.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use launcher::retry_while;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// How long a service may refuse a command, or leave its outcome unknown, before it must decide:
/// its disk may stall.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// A response as received.
#[derive(Clone, Debug, PartialEq)]
pub struct HttpResponse {
    pub status: u16,
    pub location: Option<String>,
    pub content_type: String,
    pub body: Vec<u8>,
}

/// The outcome of a command, as far as its client knows.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Durable.
    Ok(HttpResponse),
    /// Nothing was stored.
    Refused(HttpResponse),
    /// Stored or not: only a repeated request with the same key settles it.
    Unknown(String),
    /// Also unknown, and a service must never respond like that: a 500, for instance.
    Failed(HttpResponse),
}

impl Outcome {
    /// The outcome of a response, or of a request without one.
    pub fn from_response(response: Result<HttpResponse>) -> Outcome {
        match response {
            Ok(answer) => answer.into_outcome(),
            Err(error) => Outcome::Unknown(format!("no answer: {error:#}")),
        }
    }

    /// The response, if there was one.
    pub fn status(&self) -> Option<u16> {
        match self {
            Outcome::Ok(answer) | Outcome::Refused(answer) | Outcome::Failed(answer) => {
                Some(answer.status)
            }
            Outcome::Unknown(_) => None,
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Outcome::Ok(answer) | Outcome::Refused(answer) | Outcome::Failed(answer) => {
                answer.fmt(out)
            }
            Outcome::Unknown(why) => why.fmt(out),
        }
    }
}

impl HttpResponse {
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).with_context(|| format!("cannot read {self}"))
    }

    /// The JSON of a 2xx; any other response is an error that contains it.
    pub fn accepted_json<T: DeserializeOwned>(&self) -> Result<T> {
        ensure!(self.is_success(), "{self}");
        self.json()
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The last part of a problem's type.
    pub fn problem_type(&self) -> Option<String> {
        let problem: Value = serde_json::from_slice(&self.body).ok()?;
        Some(problem["type"].as_str()?.rsplit('/').next()?.to_string())
    }

    /// A 503 that leaves open whether anything was stored.
    pub fn is_outcome_unknown(&self) -> bool {
        self.status == 503 && self.problem_type().as_deref() == Some("outcome-unknown")
    }

    fn into_outcome(self) -> Outcome {
        match self.status {
            200..300 => Outcome::Ok(self),
            503 if self.is_outcome_unknown() => Outcome::Unknown(self.to_string()),
            400..500 | 503 => Outcome::Refused(self),
            _ => Outcome::Failed(self),
        }
    }
}

impl std::fmt::Display for HttpResponse {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        write!(out, "{} {}", self.status, body.chars().take(500).collect::<String>())
    }
}

/// Repeats a command that must be accepted.
pub async fn require_accepted(send: impl AsyncFnMut() -> Outcome) -> Result<HttpResponse> {
    let answer = retry_until_settled(send).await?;
    ensure!(answer.is_success(), "it was refused: {answer}");
    Ok(answer)
}

/// Repeats an idempotent command while it is refused for now or its outcome is unknown, and returns
/// the final outcome.
pub async fn retry_until_settled(send: impl AsyncFnMut() -> Outcome) -> Result<HttpResponse> {
    let is_transient = |outcome: &Outcome| matches!(outcome.status(), Some(503) | None);
    match retry_while(SETTLE_TIMEOUT, send, is_transient).await {
        Outcome::Ok(answer) => Ok(answer),
        Outcome::Refused(answer) if answer.status != 503 => Ok(answer),
        Outcome::Failed(answer) => bail!("it failed: {answer}"),
        outcome => bail!("it is not settled: {outcome}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn response(status: u16, kind: &str) -> HttpResponse {
        let body = json!({ "type": format!("/problems/{kind}") }).to_string().into_bytes();
        HttpResponse { status, location: None, content_type: String::new(), body }
    }

    #[test]
    fn only_a_503_of_type_outcome_unknown_is_unknown_and_a_500_is_a_failure() {
        assert!(matches!(response(201, "").into_outcome(), Outcome::Ok(_)));
        assert!(matches!(response(422, "invalid-value").into_outcome(), Outcome::Refused(_)));
        assert!(matches!(response(429, "slow-down").into_outcome(), Outcome::Refused(_)));
        assert!(matches!(response(503, "unavailable").into_outcome(), Outcome::Refused(_)));
        assert!(matches!(response(503, "outcome-unknown").into_outcome(), Outcome::Unknown(_)));
        assert!(matches!(response(500, "internal").into_outcome(), Outcome::Failed(_)));
    }
}
