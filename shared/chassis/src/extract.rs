//! What a handler asks of a request: its body, its path, its query, its idempotency key, how long to
//! wait, and which part of a list.
//!
//! The same as axum's extractors, but whatever is wrong is told as a [`Problem`] that names the
//! field. What they take is documented here as well, by utoipa's traits.

use std::convert::Infallible;
use std::fmt;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::de::{DeserializeOwned, Error, Unexpected, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{Object, ObjectBuilder, Schema, Type};
use utoipa::openapi::{RefOr, Required};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use uuid::Uuid;

use crate::problem::Problem;

/// A JSON body, in or out.
pub struct Json<T>(pub T);

/// The parameters of the path. One that cannot be read is a 404: nothing can be at such an address.
pub struct Path<T>(pub T);

/// The parameters of the query.
pub struct Query<T>(pub T);

/// The `Idempotency-Key` header: a structured-field string in double quotes, or the bare key.
/// As `Option<IdempotencyKey>` it may be absent; as itself its absence is a 400.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(pub String);

/// The `Prefer` header, of which we know `wait=N` (RFC 7240): how long, in whole seconds, an answer
/// may be held back until there is something to tell. What can't be read is ignored, as that RFC
/// wants it, and more than [`WAIT_MAX`] is taken as that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait(pub Option<Duration>);

/// The `Last-Event-ID` header of a client that follows a stream and has seen some of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LastEventId(pub Option<Uuid>);

/// How many entries of a list at most: 1 to `MAX`, and 100 where nothing is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit<const MAX: u32>(u32);

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const KEY_CHARACTERS_MAX: usize = 255;
const KEY_PATTERN: &str =
    r#"^("[\x21\x23-\x5b\x5d-\x7e]{1,255}"|[\x21\x23-\x5b\x5d-\x7e]{1,255})$"#;

/// Well below what a request may take, see [`crate::limits::Limits::request`].
const WAIT_MAX: Duration = Duration::from_secs(10);

const LIMIT_DEFAULT: u32 = 100;

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            return Err(Problem::new(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "The body must be sent with `Content-Type: application/json`.",
            ));
        }
        let body = Bytes::from_request(request, state)
            .await
            .map_err(|error| Problem::malformed(error.body_text()))?;
        let mut json = serde_json::Deserializer::from_slice(&body);
        let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
            let field = error.path().to_string();
            refused_json(&field, error.inner())
        })?;
        json.end().map_err(|error| refused_json("", &error))?;
        Ok(Self(value))
    }
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match <axum::extract::Path<T> as FromRequestParts<S>>::from_request_parts(parts, state)
            .await
        {
            Ok(axum::extract::Path(value)) => Ok(Self(value)),
            Err(PathRejection::FailedToDeserializePathParams(error)) => {
                Err(Problem::not_found(error.body_text()))
            }
            Err(error) => {
                tracing::error!(%error, "a route lacks the parameters that its handler reads");
                Err(Problem::internal())
            }
        }
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        axum::extract::Query::<T>::from_request_parts(parts, state)
            .await
            .map(|axum::extract::Query(value)| Self(value))
            .map_err(|error: QueryRejection| {
                let text = error.body_text();
                let message = text.rsplit_once("query string: ").map_or(&*text, |(_, rest)| rest);
                let field = message.split_once(": ").map_or("", |(field, _)| field);
                Problem::invalid(field_of(field, message), message)
            })
    }
}

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        key(&parts.headers)?.ok_or_else(|| {
            Problem::new(
                StatusCode::BAD_REQUEST,
                "idempotency-key-missing",
                "This request needs the header `Idempotency-Key`: a value of your own that stays \
                 the same when you repeat the request.",
            )
        })
    }
}

impl<S: Send + Sync> OptionalFromRequestParts<S> for IdempotencyKey {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Problem> {
        key(&parts.headers)
    }
}

fn key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Problem> {
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
        (Some(key), None) => Ok(Some(IdempotencyKey(key.to_owned()))),
        _ => Err(refused()),
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Wait {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(wait(&parts.headers))
    }
}

/// The first `wait` counts.
fn wait(headers: &HeaderMap) -> Wait {
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
        // More digits than a number has room for are a long time too.
        is_number.then(|| digits.parse().unwrap_or(u64::MAX))
    });
    Wait(seconds.map(|seconds| WAIT_MAX.min(Duration::from_secs(seconds))))
}

impl Wait {
    /// Says in the answer for how long it would have been held back.
    pub fn applied(self, answer: impl IntoResponse) -> Response {
        let mut response = answer.into_response();
        if let Wait(Some(wait)) = self {
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

impl<const MAX: u32> Limit<MAX> {
    /// How many rows to read: one more than to answer, which tells whether there are further ones.
    pub fn rows(self) -> i64 {
        i64::from(self.0) + 1
    }

    /// Cuts the rows read to the page, and answers where the next one begins: after the key of the
    /// last row here. `None` where there is nothing more.
    pub fn page<R, K>(self, rows: &mut Vec<R>, key: impl FnOnce(&R) -> K) -> Option<K> {
        let limit = self.0 as usize;
        let more = rows.len() > limit;
        rows.truncate(limit);
        rows.last().filter(|_| more).map(key)
    }
}

impl<const MAX: u32> Default for Limit<MAX> {
    fn default() -> Self {
        Limit(LIMIT_DEFAULT.min(MAX))
    }
}

impl<'de, const MAX: u32> Deserialize<'de> for Limit<MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let refused = || D::Error::custom(format!("must be a whole number from 1 to {MAX}"));
        let text = String::deserialize(deserializer)?;
        let digits = text.bytes().all(|b| b.is_ascii_digit());
        let limit = text.parse().ok().filter(|limit| digits && (1..=MAX).contains(limit));
        limit.map(Limit).ok_or_else(refused)
    }
}

impl<const MAX: u32> PartialSchema for Limit<MAX> {
    fn schema() -> RefOr<Schema> {
        let schema = ObjectBuilder::new()
            .schema_type(Type::Integer)
            .minimum(Some(1))
            .maximum(Some(MAX))
            .default(Some(Limit::<MAX>::default().0.into()));
        schema.into()
    }
}

impl<const MAX: u32> ToSchema for Limit<MAX> {}

fn header(name: &str, description: &str, schema: Object, required: Required) -> Parameter {
    ParameterBuilder::new()
        .name(name)
        .parameter_in(ParameterIn::Header)
        .description(Some(description))
        .schema(Some(schema))
        .required(required)
        .build()
}

impl IdempotencyKey {
    /// How the header is documented.
    pub(crate) fn parameter(required: Required) -> Parameter {
        let schema = ObjectBuilder::new()
            .schema_type(Type::String)
            .min_length(Some(1))
            .max_length(Some(KEY_CHARACTERS_MAX + 2))
            .pattern(Some(KEY_PATTERN));
        let description = "A value of your own that stays the same when you repeat the request: \
            visible ASCII characters without quotes or backslashes, in double quotes or bare. For 24 \
            hours the same request with the same key has its effect once and gets the same answer.";
        header("Idempotency-Key", description, schema.build(), required)
    }
}

/// Where the key is required. Every other POST takes one too, which the document says by itself.
impl IntoParams for IdempotencyKey {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        vec![IdempotencyKey::parameter(Required::True)]
    }
}

impl IntoParams for Wait {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema = ObjectBuilder::new().schema_type(Type::String).examples(["wait=10"]);
        let description = "`wait=N` (RFC 7240) holds the answer back until there is something to \
            tell, for N seconds at most and never longer than 10. `Preference-Applied` says for how \
            long it was ready to wait. What can't be read is ignored.";
        vec![header("Prefer", description, schema.build(), Required::False)]
    }
}

impl IntoParams for LastEventId {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        let schema = ObjectBuilder::new().schema_type(Type::String);
        let description = "The `id` of the last event seen: the stream goes on after it. What can't \
            be read, or is not known here, is ignored.";
        vec![header("Last-Event-ID", description, schema.build(), Required::False)]
    }
}

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = value.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
        || media_type.to_ascii_lowercase().ends_with("+json")
}

/// Reads a whole number of a body, for `#[serde(deserialize_with)]`: to JSON, and to the schemas that
/// describe it, `2` and `2.0` are the same number.
pub fn whole<'de, D: Deserializer<'de>, N: TryFrom<i64>>(deserializer: D) -> Result<N, D::Error> {
    struct Whole;

    /// From here on, neighbours of a floating-point number are no longer one apart.
    const EXACT_MAX: f64 = 9_007_199_254_740_992.0;

    impl Visitor<'_> for Whole {
        type Value = i64;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a whole number")
        }
        fn visit_i64<E: Error>(self, number: i64) -> Result<i64, E> {
            Ok(number)
        }
        fn visit_u64<E: Error>(self, number: u64) -> Result<i64, E> {
            number.try_into().map_err(|_| E::invalid_value(Unexpected::Unsigned(number), &self))
        }
        fn visit_f64<E: Error>(self, number: f64) -> Result<i64, E> {
            match number.fract() == 0.0 && number.abs() < EXACT_MAX {
                true => Ok(number as i64),
                false => Err(E::invalid_value(Unexpected::Float(number), &self)),
            }
        }
    }

    let number = deserializer.deserialize_any(Whole)?;
    N::try_from(number).map_err(|_| D::Error::custom(format!("{number} is out of range")))
}

fn refused_json(path: &str, error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    if !error.is_data() {
        return Problem::malformed(format!("The body is not JSON: {text}."));
    }
    let message = text.rsplit_once(" at line ").map_or(&*text, |(message, _)| message);
    Problem::invalid(field_of(path, message), message)
}

/// serde knows a missing or unknown field by its name in the message only; its path ends at the
/// parent.
fn field_of(path: &str, message: &str) -> String {
    let parent = if path == "." || path == "?" { "" } else { path };
    let named = ["missing field `", "unknown field `", "duplicate field `"]
        .iter()
        .find_map(|start| message.split_once(start)?.1.split_once('`'));
    match named {
        Some((name, _)) if parent.is_empty() => name.to_owned(),
        Some((name, _)) if parent != name && !parent.ends_with(&format!(".{name}")) => {
            format!("{parent}.{name}")
        }
        _ => parent.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use serde::Deserialize;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Basket {
        #[allow(dead_code)]
        owner: String,
        #[allow(dead_code)]
        lines: Vec<Line>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        #[allow(dead_code)]
        #[serde(deserialize_with = "whole")]
        quantity: u32,
    }

    async fn refusal(
        content_type: &str,
        body: &str,
    ) -> (u16, &'static str, Option<String>, String) {
        let request = Request::post("/").header("content-type", content_type);
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let Err(problem) = Json::<Basket>::from_request(request, &()).await else {
            panic!("{body} was taken")
        };
        (problem.status.as_u16(), problem.kind, problem.field, problem.detail)
    }

    async fn offending_field(body: Value) -> String {
        let (status, kind, field, detail) = refusal("application/json", &body.to_string()).await;
        assert_eq!((status, kind), (422, "invalid-value"), "{detail}");
        assert!(!detail.contains("column"), "{detail}");
        field.expect("a field is named")
    }

    #[tokio::test]
    async fn a_value_that_does_not_fit_is_a_422_that_names_its_field() {
        let lines = json!([{"quantity": 1}]);
        let wrong = json!({"owner": "a", "lines": [{"quantity": 1}, {"quantity": "2"}]});
        assert_eq!(offending_field(wrong).await, "lines[1].quantity");
        let negative = json!({"owner": "a", "lines": [{"quantity": -1}]});
        assert_eq!(offending_field(negative).await, "lines[0].quantity");
        let unknown = json!({"owner": "a", "lines": lines, "price": 1});
        assert_eq!(offending_field(unknown).await, "price");
        let deep = json!({"owner": "a", "lines": [{"quantity": 1, "price": 1}]});
        assert_eq!(offending_field(deep).await, "lines[0].price");
        assert_eq!(offending_field(json!({"lines": lines})).await, "owner");
        let missing = json!({"owner": "a", "lines": [{}]});
        assert_eq!(offending_field(missing).await, "lines[0].quantity");
        let (status, ..) = refusal("application/json", "[1]").await;
        assert_eq!(status, 422);
    }

    #[test]
    fn a_whole_number_is_one_with_and_without_a_point() {
        let read = |json: &str| {
            let mut json = serde_json::Deserializer::from_str(json);
            whole::<_, i32>(&mut json).ok()
        };
        for (json, number) in [("2", 2), ("2.0", 2), ("-3e2", -300), ("0.0", 0)] {
            assert_eq!(read(json), Some(number), "{json}");
        }
        for json in ["2.5", "2147483648", "1e300", "1e16", "18446744073709551615", "\"2\"", "null"]
        {
            assert_eq!(read(json), None, "{json}");
        }
    }

    #[tokio::test]
    async fn broken_json_is_a_400_that_says_where() {
        for body in ["", "{", r#"{"owner": "#, "nonsense", r#"{"owner":"a","lines":[]} x"#] {
            let (status, kind, field, detail) = refusal("application/json", body).await;
            assert_eq!((status, kind, field), (400, "malformed-request", None), "{detail}");
            assert!(detail.contains("at line 1 column"), "{detail}");
        }
        let (status, ..) = refusal("application/json", "\u{0}").await;
        assert_eq!(status, 400);
    }

    #[tokio::test]
    async fn another_content_type_is_a_415() {
        assert_eq!(refusal("text/plain", "{}").await.0, 415);
        assert_eq!(refusal("application/json; charset=utf-8", "{").await.0, 400);
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_read_leads_nowhere_and_a_query_names_its_parameter() {
        #[derive(Deserialize)]
        struct Page {
            #[allow(dead_code)]
            owner: uuid::Uuid,
        }
        let router = axum::Router::new()
            .route("/baskets/{id}", axum::routing::get(async |_: Path<uuid::Uuid>| "found"))
            .route("/baskets", axum::routing::get(async |_: Query<Page>| "found"));
        for (uri, status, field) in [
            ("/baskets/7", 404, None),
            ("/baskets?owner=7", 422, Some("owner")),
            ("/baskets?page=7", 422, Some("owner")),
        ] {
            let request = Request::get(uri).body(Body::empty()).unwrap();
            let response = tower::ServiceExt::oneshot(router.clone(), request).await.unwrap();
            assert_eq!(response.status(), status, "{uri}");
            let body = axum::body::to_bytes(response.into_body(), 4096).await.unwrap();
            let problem: Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(problem["field"].as_str(), field, "{problem}");
        }
    }

    #[test]
    fn a_wait_is_read_as_rfc_7240_says_and_anything_else_is_ignored() {
        let seconds = |values: &[&str]| {
            let values = values.iter().map(|value| ("prefer".parse().unwrap(), *value));
            let headers = values.map(|(name, value)| (name, value.parse().unwrap()));
            let headers: HeaderMap =
                headers.collect::<Vec<(axum::http::HeaderName, _)>>().into_iter().collect();
            wait(&headers).0.map(|wait| wait.as_secs())
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
        assert!(WAIT_MAX < crate::limits::Limits::default().request);
        let applied = Wait(Some(WAIT_MAX)).applied("");
        assert_eq!(applied.headers()["preference-applied"], "wait=10");
        assert!(!Wait(None).applied("").headers().contains_key("preference-applied"));
    }

    #[tokio::test]
    async fn a_limit_is_1_to_its_maximum_and_its_refusal_names_it() {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Page {
            #[serde(default)]
            limit: Limit<250>,
        }
        let read = async |query: &str| {
            let request = Request::get(format!("/?{query}")).body(Body::empty()).unwrap();
            let (mut parts, _) = request.into_parts();
            let page = Query::<Page>::from_request_parts(&mut parts, &()).await;
            page.map(|Query(page)| page.limit.0)
        };
        assert_eq!(read("").await.unwrap(), 100);
        assert_eq!(read("limit=1").await.unwrap(), 1);
        assert_eq!(read("limit=250").await.unwrap(), 250);
        for bad in ["0", "251", "-1", "+1", "1.5", "", "all", "99999999999"] {
            let problem = read(&format!("limit={bad}")).await.unwrap_err();
            assert_eq!(
                (problem.status.as_u16(), problem.field.as_deref(), &*problem.detail),
                (422, Some("limit"), "limit: must be a whole number from 1 to 250"),
                "{bad}"
            );
        }
        assert_eq!(Limit::<20>::default(), Limit(20));
    }

    #[test]
    fn a_page_ends_where_its_limit_is_and_says_where_the_next_one_begins() {
        let mut rows = vec![1, 2, 3];
        assert_eq!(Limit::<9>(2).page(&mut rows, |row| *row), Some(2));
        assert_eq!(rows, [1, 2]);
        assert_eq!(Limit::<9>(2).page(&mut rows, |row| *row), None);
        assert_eq!(Limit::<9>(2).page(&mut Vec::<i32>::new(), |row| *row), None);
    }

    fn headers(values: &[&str]) -> HeaderMap {
        let name = axum::http::HeaderName::from_static(IDEMPOTENCY_KEY);
        values.iter().map(|value| (name.clone(), value.parse().unwrap())).collect()
    }

    #[test]
    fn an_idempotency_key_is_quoted_or_bare_and_the_same_key_either_way() {
        let quoted = key(&headers(&["\"8e03978e-40d5\""])).unwrap();
        assert_eq!(quoted, key(&headers(&["8e03978e-40d5"])).unwrap());
        assert_eq!(quoted.unwrap().0, "8e03978e-40d5");
        assert_eq!(key(&headers(&[])).unwrap(), None);
        assert!(key(&headers(&[&"x".repeat(255)])).is_ok());
    }

    #[tokio::test]
    async fn a_bad_idempotency_key_is_a_400_and_so_is_its_absence_where_it_is_required() {
        let long = "x".repeat(256);
        for bad in ["", "\"\"", "\"open", "a b", "a\"b", "\"a\\b\"", "\"a\";b=1", "é", &long] {
            assert_eq!(key(&headers(&[bad])).unwrap_err().status, 400, "{bad}");
        }
        assert_eq!(key(&headers(&["a", "a"])).unwrap_err().status, 400);
        let (mut parts, ()) = Request::new(()).into_parts();
        let absent =
            <IdempotencyKey as FromRequestParts<()>>::from_request_parts(&mut parts, &()).await;
        let problem = absent.unwrap_err();
        assert_eq!(problem.status, 400);
        assert!(problem.detail.contains("Idempotency-Key"));
    }
}
