//! The extractors of a request's headers: its idempotency key, how long to wait, and the last event that a client
//! has received of a stream.
//!
//! An invalid header is refused or ignored, as its standard requires. Each is described for the API here as well,
//! by utoipa's traits.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{Object, ObjectBuilder, Type};
use uuid::Uuid;

use crate::http::callers::identify::caller_of;
use crate::http::problem::Problem;

/// The `Prefer` header with `wait=N` (RFC 7240): how long, in whole seconds, an answer may be delayed until there
/// is a result. A value that cannot be parsed is ignored, as that RFC requires, and a longer wait is cut to
/// `WAIT_MAX`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreferWait(pub Option<Duration>);

/// The `Last-Event-ID` header of a client that resumes a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastEventId(pub Option<Uuid>);

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const KEY_CHARACTERS_MAX: usize = 255;
const KEY_PATTERN: &str =
    r#"^("[\x21\x23-\x5b\x5d-\x7e]{1,255}"|[\x21\x23-\x5b\x5d-\x7e]{1,255})$"#;

/// Well below [`crate::http::limits::Limits::request_timeout`].
const WAIT_MAX: Duration = Duration::from_secs(10);

/// The `Idempotency-Key` header: a structured-field string in double quotes, or the bare key. Where the service knows
/// its callers, it is a hash of the caller and the key, so that two callers may draw the same one.
pub(crate) fn optional_key(parts: &Parts) -> Result<Option<String>, Problem> {
    let Some(key) = idempotency_key(&parts.headers)? else { return Ok(None) };
    // A key belongs to the caller who drew it.
    Ok(Some(caller_of(parts)?.idempotency_key(key)))
}

/// The same header, whose absence is a 400.
pub(crate) fn required_key(parts: &Parts) -> Result<String, Problem> {
    optional_key(parts)?.ok_or_else(|| {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "idempotency-key-missing",
            "This request needs the header `Idempotency-Key`: a value of your own that stays \
             the same when you repeat the request.",
        )
    })
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let refused = || {
        Problem::new(
            StatusCode::BAD_REQUEST,
            "idempotency-key-malformed",
            "The header `Idempotency-Key` must be sent once and hold 1 to 255 visible ASCII \
             characters without quotes or backslashes, in double quotes or bare.",
        )
    };
    let mut values = headers.get_all(IDEMPOTENCY_KEY).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    let text = value.to_str().map_err(|_| refused())?;
    let key = text
        .strip_prefix('"')
        .map_or(Some(text), |rest| rest.strip_suffix('"'))
        .filter(|key| (1..=KEY_CHARACTERS_MAX).contains(&key.len()))
        .filter(|key| key.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\'));
    match (key, values.next()) {
        (Some(key), None) => Ok(Some(key.to_owned())),
        _ => Err(refused()),
    }
}

impl<S: Send + Sync> FromRequestParts<S> for PreferWait {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(prefer_wait(&parts.headers))
    }
}

/// The first `wait` counts.
fn prefer_wait(headers: &HeaderMap) -> PreferWait {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let preferences = values.flat_map(|value| value.split(','));
    let wait = preferences
        .filter_map(|preference| preference.split(';').next()?.split_once('='))
        .find(|(name, _)| name.trim().eq_ignore_ascii_case("wait"));
    let seconds = wait.and_then(|(_, value)| {
        let value = value.trim();
        let quoted = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
        let digits = quoted.unwrap_or(value);
        let is_number = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
        // A number that overflows is a long wait too.
        is_number.then(|| digits.parse().unwrap_or(u64::MAX))
    });
    PreferWait(seconds.map(|seconds| WAIT_MAX.min(Duration::from_secs(seconds))))
}

impl PreferWait {
    /// Adds the header `Preference-Applied`: for how long the answer could have been delayed.
    pub fn preference_applied(self, response: impl IntoResponse) -> Response {
        let mut response = response.into_response();
        if let PreferWait(Some(wait)) = self {
            let applied = HeaderValue::try_from(format!("wait={}", wait.as_secs()));
            response
                .headers_mut()
                .insert("preference-applied", applied.expect("a number is no control character"));
        }
        response
    }
}

impl<S: Send + Sync> FromRequestParts<S> for LastEventId {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        let value = parts.headers.get("last-event-id").and_then(|value| value.to_str().ok());
        Ok(LastEventId(value.and_then(|id| id.parse().ok())))
    }
}

fn header_parameter(
    name: &str,
    description: &str,
    schema: Object,
    required: Required,
) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .description(Some(description))
        .schema(Some(schema))
        .required(required)
        .build()
}

/// The description of the header with the key.
pub(crate) fn key_parameter(required: Required) -> Parameter {
    let schema = ObjectBuilder::new()
        .schema_type(Type::String)
        .min_length(Some(1))
        .max_length(Some(KEY_CHARACTERS_MAX + 2))
        .pattern(Some(KEY_PATTERN));
    let description = "A value of your own that stays the same when you repeat the request: \
        visible ASCII characters without quotes or backslashes, in double quotes or bare. For at \
        least 24 hours after it was accepted, the same request with the same key has no second \
        effect and gets the same answer; one that was refused is decided again.";
    header_parameter("Idempotency-Key", description, schema.build(), required)
}

impl IntoParams for PreferWait {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema = ObjectBuilder::new().schema_type(Type::String).examples(["wait=10"]);
        let description = "`wait=N` (RFC 7240) delays the answer until the resource is final, for N \
            seconds at most and never longer than 10. `Preference-Applied` has the number of seconds that \
            were granted. A malformed value is ignored.";
        vec![header_parameter("Prefer", description, schema.build(), Required::False)]
    }
}

impl IntoParams for LastEventId {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema = ObjectBuilder::new().schema_type(Type::String);
        let description = "The `id` of the last event seen: the stream goes on after it. What can't \
            be read, or is not known here, is ignored.";
        vec![header_parameter("Last-Event-ID", description, schema.build(), Required::False)]
    }
}

#[cfg(test)]
mod tests {
    use axum::extract::Request;

    use super::*;

    #[test]
    fn a_prefer_wait_is_read_as_in_rfc_7240_and_anything_else_is_ignored() {
        let seconds = |values: &[&str]| {
            let values = values.iter().map(|value| ("prefer".parse().unwrap(), *value));
            let headers = values.map(|(name, value)| (name, value.parse().unwrap()));
            let headers: HeaderMap =
                headers.collect::<Vec<(axum::http::HeaderName, _)>>().into_iter().collect();
            prefer_wait(&headers).0.map(|wait| wait.as_secs())
        };
        for (value, expected) in [
            ("wait=3", Some(3)),
            ("Wait = 3", Some(3)),
            ("wait=\"3\"", Some(3)),
            ("respond-async, wait=3; why=\"because\", wait=5", Some(3)),
            ("wait=0", Some(0)),
            ("wait=10", Some(10)),
            ("wait=11", Some(10)),
            ("wait=99999999999999999999999999", Some(10)),
            ("wait=-1", None),
            ("wait=+1", None),
            ("wait=1.5", None),
            ("wait=", None),
            ("wait", None),
            ("waiting=3", None),
            ("", None),
        ] {
            assert_eq!(seconds(&[value]), expected, "{value}");
        }
        assert_eq!(seconds(&["respond-async", "wait=2"]), Some(2));
        assert_eq!(seconds(&[]), None);
        assert!(WAIT_MAX < crate::http::limits::Limits::default().request_timeout);
        let applied = PreferWait(Some(WAIT_MAX)).preference_applied("");
        assert_eq!(applied.headers()["preference-applied"], "wait=10");
        assert!(
            !PreferWait(None).preference_applied("").headers().contains_key("preference-applied")
        );
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let name = axum::http::HeaderName::from_static(IDEMPOTENCY_KEY);
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn an_idempotency_key_is_quoted_or_bare_and_the_same_key_either_way() {
        let quoted = idempotency_key(&headers(&["\"8e03978e-40d5\""])).unwrap();
        assert_eq!(quoted, idempotency_key(&headers(&["8e03978e-40d5"])).unwrap());
        assert_eq!(quoted.unwrap(), "8e03978e-40d5");
        assert_eq!(idempotency_key(&headers(&[])).unwrap(), None);
        assert!(idempotency_key(&headers(&[&"x".repeat(255)])).is_ok());
    }

    #[test]
    fn a_bad_idempotency_key_is_a_400_and_so_is_its_absence_where_it_is_required() {
        let long = "x".repeat(256);
        for bad in ["", "\"\"", "\"open", "a b", "a\"b", "\"a\\b\"", "\"a\";b=1", "é", &long] {
            assert_eq!(idempotency_key(&headers(&[bad])).unwrap_err().status, 400, "{bad}");
        }
        assert_eq!(idempotency_key(&headers(&["a", "a"])).unwrap_err().status, 400);
        let (parts, ()) = Request::new(()).into_parts();
        let problem = required_key(&parts).unwrap_err();
        assert_eq!(problem.status, 400);
        assert!(problem.detail.contains("Idempotency-Key"));
    }
}
