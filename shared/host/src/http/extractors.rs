//! The extractors of a request's body, path and query.
//!
//! They are the same as axum's extractors, but their rejection is a [`Problem`] that names the field. Headers are read
//! by [`crate::http::headers`], the parameters of a list by [`crate::http::pagination`].

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use crate::http::problem::Problem;

/// A JSON body, in or out.
pub struct Json<T>(pub T);

/// The body of a request without parameters: none, or `{}`. Any field in it is refused like any unknown field.
pub struct EmptyBody;

/// A JSON body, or none for the default.
pub(crate) struct JsonOrDefault<T>(pub T);

/// The parameters of the path. A parameter that cannot be read is a 404: nothing exists at such an address.
pub struct Path<T>(pub T);

/// The parameters of the query.
pub struct Query<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Json<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        if !is_json(request.headers()) {
            let detail = "The body must be sent with `Content-Type: application/json`.";
            return Err(unsupported(detail));
        }
        check_charset(request.headers())?;
        parse_json(&read_bytes(request, state).await?).map(Self)
    }
}

impl<S: Send + Sync> FromRequest<S> for EmptyBody {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        // It is read as a map: serde would read a struct without fields from an empty list as well.
        type Fields = BTreeMap<String, IgnoredAny>;
        let JsonOrDefault(fields) = JsonOrDefault::<Fields>::from_request(request, state).await?;
        match fields.into_keys().next() {
            None => Ok(Self),
            Some(field) => Err(Problem::invalid(field, "is not known: there are no fields")),
        }
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for JsonOrDefault<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let charset = check_charset(request.headers());
        let body = read_bytes(request, state).await?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        charset?;
        parse_json(&body).map(Self)
    }
}

/// The bytes of a body, without the byte order mark that some clients write before JSON (RFC 8259, section 8.1).
async fn read_bytes<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    let body = Bytes::from_request(request, state).await;
    let body = body.map_err(|error| Problem::malformed(error.body_text()))?;
    let mark = if body.starts_with("\u{feff}".as_bytes()) { "\u{feff}".len() } else { 0 };
    Ok(body.slice(mark..))
}

fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    serde_json::from_slice(body).map_err(|error| json_problem(&error_path::<T>(body), &error))
}

impl<T: Serialize> IntoResponse for Json<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let path = axum::extract::Path::<T>::from_request_parts(parts, state).await;
        path.map(|axum::extract::Path(value)| Self(value)).map_err(|error| match error {
            PathRejection::FailedToDeserializePathParams(error) => {
                Problem::not_found(error.body_text())
            }
            error => {
                tracing::error!(%error, "a route lacks the parameters that its handler reads");
                Problem::internal()
            }
        })
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let query = axum::extract::Query::<T>::from_request_parts(parts, state).await;
        query.map(|axum::extract::Query(value)| Self(value)).map_err(|error| {
            let text = error.body_text();
            let message = text.rsplit_once("query string: ").map_or(&*text, |(_, rest)| rest);
            let field = message.split_once(": ").map_or("", |(field, _)| field);
            Problem::invalid(field_path(field, message), message)
        })
    }
}

fn unsupported(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type", detail)
}

fn content_type(headers: &HeaderMap) -> &str {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default()
}

fn is_json(headers: &HeaderMap) -> bool {
    let media_type = content_type(headers).split(';').next().unwrap_or_default().trim();
    media_type.eq_ignore_ascii_case("application/json")
        || media_type.to_ascii_lowercase().ends_with("+json")
}

/// Refuses every charset but UTF-8, which is the one of JSON and the default.
fn check_charset(headers: &HeaderMap) -> Result<(), Problem> {
    let parameters = content_type(headers).split(';').skip(1);
    for (name, value) in parameters.filter_map(|parameter| parameter.split_once('=')) {
        let charset = value.trim().trim_matches('"');
        let is_utf_8 = ["utf-8", "utf8"].iter().any(|it| charset.eq_ignore_ascii_case(it));
        if name.trim().eq_ignore_ascii_case("charset") && !is_utf_8 {
            let detail = format!("The body is sent with the charset {charset}: send it in UTF-8.");
            return Err(unsupported(detail));
        }
    }
    Ok(())
}

/// The path of the value that cannot be read. It costs a second read of the body, which happens only before a
/// refusal.
fn error_path<T: DeserializeOwned>(body: &[u8]) -> String {
    let mut json = serde_json::Deserializer::from_slice(body);
    let read = serde_path_to_error::deserialize::<_, T>(&mut json);
    read.err().map(|error| error.path().to_string()).unwrap_or_default()
}

fn json_problem(path: &str, error: &serde_json::Error) -> Problem {
    let text = error.to_string();
    if !error.is_data() {
        return Problem::malformed(format!("The body is not JSON: {text}."));
    }
    let message = text.rsplit_once(" at line ").map_or(&*text, |(message, _)| message);
    Problem::invalid(field_path(path, message), message)
}

/// serde names a missing or unknown field only in its message; its path ends at the parent.
fn field_path(path: &str, message: &str) -> String {
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

    use messaging::integer::deserialize_integer;

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
        #[serde(deserialize_with = "deserialize_integer")]
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
    async fn an_empty_body_is_no_bytes_or_an_empty_object() {
        let read = async |body: &'static str| {
            let request = Request::post("/").body(Body::from(body)).unwrap();
            EmptyBody::from_request(request, &()).await.map_err(|it| (it.status.as_u16(), it.field))
        };
        assert!(read("").await.is_ok() && read("{}").await.is_ok());
        let unknown = (422, Some("colour".to_string()));
        assert_eq!(read(r#"{"colour": false}"#).await.err(), Some(unknown));
        assert_eq!(read("now").await.err(), Some((400, None)));
        for no_object in ["[]", "null", "0"] {
            assert_eq!(read(no_object).await.err().map(|(status, _)| status), Some(422));
        }
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
    async fn broken_json_is_a_400_with_its_position() {
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
        for utf_8 in ["charset=utf-8", "Charset=\"UTF-8\"", "profile=a; charset=UTF8", "charset"] {
            assert_eq!(refusal(&format!("application/json; {utf_8}"), "{").await.0, 400, "{utf_8}");
        }
        for charset in ["utf-16", "iso-8859-1", "US-ASCII"] {
            let content_type = format!("application/json;charset={charset}");
            let (status, kind, _, detail) = refusal(&content_type, "{}").await;
            assert_eq!((status, kind), (415, "unsupported-media-type"));
            assert!(detail.contains(charset), "{detail}");
        }
        let request = Request::post("/").header("content-type", "text/plain; charset=utf-16");
        let request = request.body(Body::from("{\0}\0")).unwrap();
        assert_eq!(EmptyBody::from_request(request, &()).await.err().unwrap().status, 415);
    }

    /// Windows' PowerShell and .NET write it.
    #[tokio::test]
    async fn a_byte_order_mark_before_a_body_is_ignored() {
        let request = |body: &'static str| {
            let request = Request::post("/").header("content-type", "application/json");
            request.body(Body::from(body)).unwrap()
        };
        let body = "\u{feff}{\"owner\": \"a\", \"lines\": []}";
        assert!(Json::<Basket>::from_request(request(body), &()).await.is_ok());
        for empty in ["\u{feff}", "\u{feff}{}"] {
            assert!(EmptyBody::from_request(request(empty), &()).await.is_ok(), "{empty:?}");
        }
        let (status, ..) = refusal("application/json", "\u{feff}\u{feff}{}").await;
        assert_eq!(status, 400, "one of them");
    }

    #[tokio::test]
    async fn a_path_that_cannot_be_read_is_a_404_and_a_query_names_its_parameter() {
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
}
