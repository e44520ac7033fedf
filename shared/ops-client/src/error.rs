//! Why a service gave no answer that can be used.

use reqwest::StatusCode;
use serde::Deserialize;

const NO_ANSWER: &str = "it does not answer in time";

/// Why a service gave no answer that can be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum ServiceError {
    /// No instance of it can be reached.
    #[error("No instance of {service} answers: {reason}")]
    Unreachable { service: String, reason: String },
    /// It refuses the request, with the type of the problem and its text.
    #[error("{service} refuses it: {detail}")]
    Refused { service: String, status: StatusCode, kind: String, detail: String },
    /// Its answer is of another version.
    #[error("The answer of {service} cannot be read: {reason}")]
    Unreadable { service: String, reason: String },
}

/// The body of a refusal, by RFC 9457.
#[derive(Default, Deserialize)]
#[serde(default)]
struct ProblemBody {
    #[serde(rename = "type")]
    kind: String,
    detail: String,
}

impl ServiceError {
    pub(crate) fn refused(service: String, status: StatusCode, body: &[u8]) -> ServiceError {
        let problem: ProblemBody = serde_json::from_slice(body).unwrap_or_default();
        let kind = problem.kind.rsplit('/').next().unwrap_or_default().to_string();
        let detail = match problem.detail.is_empty() {
            true => format!("it answers {status}"),
            false => problem.detail,
        };
        ServiceError::Refused { service, status, kind, detail }
    }

    /// The status of a refusal.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            ServiceError::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// The innermost reason of an error: the outer ones repeat the address.
pub fn describe(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return NO_ANSWER.to_string();
    }
    let mut reason: &dyn std::error::Error = error;
    while let Some(source) = reason.source() {
        reason = source;
    }
    reason.to_string()
}
