//! The body of an error response: `application/problem+json` (RFC 9457).
//!
//! A request has one of three outcomes: success, refused (nothing was stored), or unknown (the client retries with
//! the same idempotency key). A 503 is refused unless it is [`Problem::outcome_unknown`]. A 500 is unknown too: the
//! failure may have happened after a commit.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use messaging::commands::refusal::Refusal;
use messaging::db::operator_acts::OperatorActError;
use messaging::db::{self, DbErrorClass, login};
use messaging::telemetry::refusals;
use serde::ser::{Serialize, SerializeStruct, Serializer};

use crate::http::login_retry::LoginRefused;

const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A refusal or a failure, as the client reads it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} {kind}: {detail}", status.as_u16())]
pub struct Problem {
    /// The HTTP status.
    pub status: StatusCode,
    /// The last part of the type `/problems/{kind}`: lower case, words joined by hyphens, never
    /// changed once published.
    pub kind: &'static str,
    /// What happened this time, for people.
    pub detail: String,
    /// The offending value's place in the request, like `lines[2].quantity`.
    pub field: Option<String>,
    /// When to repeat the request, at the earliest.
    pub retry_after: Option<Duration>,
    /// Whether the database refused the login, before any statement.
    pub(crate) login_refused: bool,
}

impl Problem {
    /// Any status and kind; the constructors below read better where they fit.
    pub fn new(status: StatusCode, kind: &'static str, detail: impl Into<String>) -> Self {
        let (field, retry_after, login_refused) = (None, None, false);
        Self { status, kind, detail: detail.into(), field, retry_after, login_refused }
    }

    /// 400: this is not the request that it claims to be (broken JSON, a bad header).
    pub fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed-request", detail)
    }

    /// 422: the request can be read, and the value of `field` breaks a rule.
    pub fn invalid(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-value", detail).with_field(field)
    }

    /// 403: the caller may not do this with the value of `field`.
    pub fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", detail).with_field(field)
    }

    /// 404: what the request names does not exist.
    pub fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", detail)
    }

    /// 405, without the header `Allow`, which the caller adds.
    pub(crate) fn method_not_allowed() -> Self {
        let detail = "The header `Allow` names the methods that this address knows.";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", detail)
    }

    /// 409: the state of things does not allow it.
    pub fn conflict(kind: &'static str, detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, kind, detail)
    }

    /// 503: not now. Nothing was stored.
    pub fn unavailable(detail: impl Into<String>) -> Self {
        let problem = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", detail);
        Self { retry_after: Some(RETRY_AFTER), ..problem }
    }

    /// 503: it may have been stored or not.
    pub fn outcome_unknown() -> Self {
        let detail = "It is unknown whether this was stored. Repeat the request with the same \
                      Idempotency-Key. Without a key, check first whether it was stored.";
        Self { kind: "outcome-unknown", ..Self::unavailable(detail) }
    }

    /// 503: the commit of an operator's request was cut, or the database did not answer in time. It is safe to
    /// repeat the request.
    pub fn admin_outcome_unknown(reason: impl std::fmt::Display) -> Self {
        tracing::warn!("the outcome of an operator's request is unknown: {reason}");
        let detail = "It is unknown whether this was done: check the state, or repeat the request, \
                      which is safe.";
        Self { detail: detail.into(), ..Self::outcome_unknown() }
    }

    /// 422: this Idempotency-Key was used before, for another request.
    pub fn key_reused() -> Self {
        let detail = "This Idempotency-Key was used here for another request.";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency-key-reused", detail)
    }

    /// 500: our fault. The reason is in the log and nowhere else.
    pub fn internal() -> Self {
        let detail = "Something went wrong on our side.";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", detail)
    }

    /// Names the offending value's place in the request.
    pub fn with_field(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into()).filter(|field| !field.is_empty());
        self
    }

    /// The kind, readable: `insufficient-funds` is "Insufficient funds".
    fn title(&self) -> String {
        let words = self.kind.replace('-', " ");
        let (first, rest) = words.split_at(words.len().min(1));
        first.to_uppercase() + rest
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_struct("Problem", 5)?;
        object.serialize_field("type", &format_args!("/problems/{}", self.kind))?;
        object.serialize_field("title", &self.title())?;
        object.serialize_field("status", &self.status.as_u16())?;
        object.serialize_field("detail", &self.detail)?;
        match &self.field {
            Some(field) => object.serialize_field("field", field)?,
            None => object.skip_field("field")?,
        }
        object.end()
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, axum::Json(&self)).into_response();
        let content_type = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        if let Some(after) = self.retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, after.as_secs().max(1).into());
        }
        if self.login_refused {
            response.extensions_mut().insert(LoginRefused);
        }
        response
    }
}

/// For reads, and for writes before their COMMIT was sent: an error of the COMMIT itself leaves the
/// outcome unknown, and is not for this conversion.
impl From<sqlx::Error> for Problem {
    fn from(error: sqlx::Error) -> Self {
        refusals::report_postgres(&error);
        if matches!(db::classify(&error), DbErrorClass::StatementTimeout) {
            let detail = "The database took too long; nothing was stored.";
            return Self::unavailable(detail);
        }
        // Postgres stores every character of a text except NUL. A client that sends NUL gets 422.
        if error.as_database_error().is_some_and(|error| error.code().as_deref() == Some("22021")) {
            let detail = "a text holds a character that can't be stored, such as NUL";
            return Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid-value", detail);
        }
        let login_refused = login::is_refused(&error);
        if login_refused || is_transient(&error) {
            let detail = "The database is unavailable; nothing was stored.";
            return Self { login_refused, ..Self::unavailable(detail) };
        }
        tracing::error!(error = &error as &dyn std::error::Error, "a statement of the API failed");
        Self::internal()
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::KeyReused => Self::key_reused(),
            Refusal::Unavailable(detail) => Self::unavailable(detail),
            Refusal::OutcomeUnknown => Self::outcome_unknown(),
            Refusal::Failed => Self::internal(),
        }
    }
}

impl From<OperatorActError> for Problem {
    fn from(error: OperatorActError) -> Self {
        match error {
            OperatorActError::NotStored(error) => error.into(),
            OperatorActError::OutcomeUnknown(error) => Self::admin_outcome_unknown(error),
        }
    }
}

/// Whether the same statement may succeed soon.
fn is_transient(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        sqlx::Error::Database(error) => error.code().is_some_and(|code| {
            // Connection, resources, operator and timeouts; serialization and deadlock; locks; a
            // standby.
            ["08", "53", "57", "40"].iter().any(|class| code.starts_with(class))
                || ["55P03", "25006"].contains(&&*code)
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_serialised_as_in_rfc_9457() {
        let problem = Problem::invalid("lines[2].quantity", "It must be from 1 to 1,000.");
        assert_eq!(
            serde_json::to_value(&problem).unwrap(),
            serde_json::json!({
                "type": "/problems/invalid-value",
                "title": "Invalid value",
                "status": 422,
                "detail": "It must be from 1 to 1,000.",
                "field": "lines[2].quantity",
            })
        );
        let response = Problem::outcome_unknown().into_response();
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[header::RETRY_AFTER], "1");
    }

    #[test]
    fn a_database_that_is_away_is_unavailable_and_a_wrong_statement_is_our_fault() {
        let away = Problem::from(sqlx::Error::PoolTimedOut);
        assert_eq!((away.status.as_u16(), away.kind), (503, "unavailable"));
        let wrong = Problem::from(sqlx::Error::ColumnNotFound("till".into()));
        assert_eq!((wrong.status.as_u16(), wrong.kind), (500, "internal"));
        assert!(!wrong.detail.contains("till"));
    }
}
