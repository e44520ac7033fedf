//! What a handler asks of a request: its body, its path, its query, its idempotency key.
//!
//! The same as axum's extractors, but whatever is wrong is told as a [`Problem`] that names the
//! field.

use axum::body::Bytes;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{FromRequest, FromRequestParts, OptionalFromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

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

const IDEMPOTENCY_KEY: &str = "idempotency-key";
const KEY_CHARACTERS_MAX: usize = 255;

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

fn is_json(headers: &HeaderMap) -> bool {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let media_type = value.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
        || media_type.to_ascii_lowercase().ends_with("+json")
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
