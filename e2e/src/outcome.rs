//! What a client is told, and what that means: one of three outcomes, as the README promises them.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::wait::ask_again;

/// How long a service may refuse for now, or leave in doubt, what it has to decide: the disk may stand
/// still.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// An answer as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub location: Option<String>,
    pub content_type: String,
    pub body: Vec<u8>,
}

/// What a command came to, as far as its client can tell.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Durable.
    Ok(Answer),
    /// Nothing was stored.
    Refused(Answer),
    /// It may be stored or not: only the same key, asked again, tells.
    Unknown(String),
    /// The same, and the service ought never to answer that: a 500, for instance.
    Failed(Answer),
}

impl Outcome {
    /// Of what was told, or that nothing was.
    pub fn of(told: Result<Answer>) -> Outcome {
        match told {
            Ok(answer) => answer.outcome(),
            Err(error) => Outcome::Unknown(format!("no answer: {error:#}")),
        }
    }

    /// What was answered, if anything was.
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

impl Answer {
    pub fn json<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_slice(&self.body).with_context(|| format!("cannot read {self}"))
    }

    /// The JSON of a 2xx; anything else is an error that shows the answer.
    pub fn accepted<T: DeserializeOwned>(&self) -> Result<T> {
        ensure!(self.is_success(), "{self}");
        self.json()
    }

    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The last part of a problem's type.
    pub fn problem(&self) -> Option<String> {
        let problem: Value = serde_json::from_slice(&self.body).ok()?;
        Some(problem["type"].as_str()?.rsplit('/').next()?.to_string())
    }

    /// A 503 that leaves open whether anything was stored.
    pub fn is_doubtful(&self) -> bool {
        self.status == 503 && self.problem().as_deref() == Some("outcome-unknown")
    }

    fn outcome(self) -> Outcome {
        match self.status {
            200..300 => Outcome::Ok(self),
            503 if self.is_doubtful() => Outcome::Unknown(self.to_string()),
            400..500 | 503 => Outcome::Refused(self),
            _ => Outcome::Failed(self),
        }
    }
}

impl std::fmt::Display for Answer {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let body = String::from_utf8_lossy(&self.body);
        write!(out, "{} {}", self.status, body.chars().take(500).collect::<String>())
    }
}

/// Has a command accepted that can be.
pub async fn accepted(ask: impl AsyncFnMut() -> Outcome) -> Result<Answer> {
    let answer = settled(ask).await?;
    ensure!(answer.is_success(), "it was refused: {answer}");
    Ok(answer)
}

/// What becomes of a command that means the same twice: asks again while it is refused for now, or left in
/// doubt.
pub async fn settled(ask: impl AsyncFnMut() -> Outcome) -> Result<Answer> {
    let for_now = |outcome: &Outcome| matches!(outcome.status(), Some(503) | None);
    match ask_again(SETTLED_WITHIN, ask, for_now).await {
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

    fn answer(status: u16, kind: &str) -> Answer {
        let body = json!({ "type": format!("/problems/{kind}") }).to_string().into_bytes();
        Answer { status, location: None, content_type: String::new(), body }
    }

    #[test]
    fn only_a_503_that_says_so_and_what_nobody_expects_are_unknown() {
        assert!(matches!(answer(201, "").outcome(), Outcome::Ok(_)));
        assert!(matches!(answer(422, "invalid-value").outcome(), Outcome::Refused(_)));
        assert!(matches!(answer(429, "slow-down").outcome(), Outcome::Refused(_)));
        assert!(matches!(answer(503, "unavailable").outcome(), Outcome::Refused(_)));
        assert!(matches!(answer(503, "outcome-unknown").outcome(), Outcome::Unknown(_)));
        assert!(matches!(answer(500, "internal").outcome(), Outcome::Failed(_)));
    }
}
