//! The extractor of a request that has its effect once: its body, its key and its concrete path.

use std::marker::PhantomData;

use axum::extract::{FromRequest, OriginalUri, Request};
use axum::http::request::Parts;
use messaging::commands::idempotency::IdempotentRequest;
use percent_encoding::percent_decode_str;
use serde::Serialize;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;
use utoipa::openapi::Required;
use utoipa::openapi::path::{Parameter, ParameterIn};
use uuid::Uuid;

use crate::http::extractors::{EmptyBody, Json};
use crate::http::headers;
use crate::http::problem::Problem;

/// A request, or the command that was made of it, with the key under which it has its effect once. A key belongs to
/// one caller and to one path: that of the request, with its ids.
///
/// The body is JSON, or an [`EmptyBody`]. `K` says where the key comes from: the header `Idempotency-Key` has to be
/// there, may be there ([`OptionalKey`]), or is ignored ([`GeneratedKey`]). utoipa describes the header by
/// `params(Idempotent<(), K>)`, and needs `request_body = …`.
#[derive(Debug)]
pub struct Idempotent<T, K = RequiredKey> {
    /// The body, or the command.
    pub request: T,
    pub(crate) identity: Option<IdempotentRequest>,
    key: PhantomData<fn() -> K>,
}

/// A key that the client has to send.
#[derive(Debug)]
pub struct RequiredKey;

/// A key that the client may send.
#[derive(Debug)]
pub struct OptionalKey;

/// The key of a request whose clients send none, and whose effect another request may undo. With it, an attempt after a
/// cut commit finds that the command had its effect, even if its rows no longer show it.
#[derive(Debug)]
pub struct GeneratedKey;

/// Where the key of a request comes from.
pub trait KeySource: Send {
    /// The key, if there is one.
    ///
    /// # Errors
    /// It is missing or malformed.
    fn read(parts: &Parts) -> Result<Option<String>, Problem>;
    /// The parameter by which clients send it.
    fn parameter() -> Option<Parameter>;
}

impl KeySource for RequiredKey {
    fn read(parts: &Parts) -> Result<Option<String>, Problem> {
        headers::required_key(parts).map(Some)
    }
    fn parameter() -> Option<Parameter> {
        Some(headers::key_parameter(Required::True))
    }
}

impl KeySource for OptionalKey {
    fn read(parts: &Parts) -> Result<Option<String>, Problem> {
        headers::optional_key(parts)
    }
    fn parameter() -> Option<Parameter> {
        Some(headers::key_parameter(Required::False))
    }
}

impl KeySource for GeneratedKey {
    fn read(_: &Parts) -> Result<Option<String>, Problem> {
        Ok(Some(Uuid::now_v7().to_string()))
    }
    fn parameter() -> Option<Parameter> {
        None
    }
}

impl<T, K: KeySource> IntoParams for Idempotent<T, K> {
    fn into_params(_: impl Fn() -> Option<ParameterIn>) -> Vec<Parameter> {
        K::parameter().into_iter().collect()
    }
}

/// A body that can be read and hashed: the same key with another body is refused.
pub trait Body: Sized {
    /// Reads it.
    ///
    /// # Errors
    /// It is malformed.
    fn read(request: Request) -> impl Future<Output = Result<Self, Problem>> + Send;
    /// What is hashed.
    fn hashed(&self) -> &impl Serialize;
}

impl<T: DeserializeOwned + Serialize> Body for T {
    async fn read(request: Request) -> Result<Self, Problem> {
        Json::from_request(request, &()).await.map(|Json(body)| body)
    }
    fn hashed(&self) -> &impl Serialize {
        self
    }
}

impl Body for EmptyBody {
    async fn read(request: Request) -> Result<Self, Problem> {
        EmptyBody::from_request(request, &()).await
    }
    fn hashed(&self) -> &impl Serialize {
        &()
    }
}

impl<T, K, S> FromRequest<S> for Idempotent<T, K>
where
    T: Body + Send,
    K: KeySource,
    S: Send + Sync,
{
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        let key = K::read(&parts)?;
        let path = concrete_path(&parts);
        let request = T::read(Request::from_parts(parts, body)).await?;
        let identity = key.map(|key| IdempotentRequest::new(path, &key, request.hashed()));
        Ok(Idempotent { request, identity, key: PhantomData })
    }
}

/// The decoded path. An id has one spelling in it, because a route reads a UUID in each of its spellings.
fn concrete_path(parts: &Parts) -> String {
    // A nested router strips the prefix of `uri`.
    let uri = parts.extensions.get::<OriginalUri>().map_or(&parts.uri, |original| &original.0);
    let path = percent_decode_str(uri.path()).decode_utf8_lossy();
    let one_spelling = |segment: &str| match Uuid::try_parse(segment) {
        Ok(id) => id.to_string(),
        Err(_) => segment.to_owned(),
    };
    path.split('/').map(one_spelling).collect::<Vec<_>>().join("/")
}

impl<T, K> Idempotent<T, K> {
    /// Makes a command of the request.
    pub fn map<C>(self, command: impl FnOnce(T) -> C) -> Idempotent<C, K> {
        let Idempotent { request, identity, key } = self;
        Idempotent { request: command(request), identity, key }
    }

    /// Makes a command of the request, or refuses it.
    ///
    /// # Errors
    /// Those of `command`.
    pub fn try_map<C, E>(
        self,
        command: impl FnOnce(T) -> Result<C, E>,
    ) -> Result<Idempotent<C, K>, E> {
        let Idempotent { request, identity, key } = self;
        Ok(Idempotent { request: command(request)?, identity, key })
    }
}

impl<T> Idempotent<T> {
    /// A command that no request of a client causes.
    pub fn without_key(command: T) -> Self {
        Idempotent { request: command, identity: None, key: PhantomData }
    }
}

#[cfg(test)]
impl<T: Serialize> Idempotent<T> {
    /// A request at a path with a key.
    pub fn new(path: &str, key: &str, request: T) -> Self {
        let identity = Some(IdempotentRequest::new(path, key, &request));
        Idempotent { request, identity, key: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::{post, put};
    use axum::{Extension, Router};
    use http_body_util::BodyExt;
    use serde_json::{Value, json};
    use tower::ServiceExt;

    use super::*;
    use crate::http::callers::identify::Callers;

    /// The path and the key of a request that each route reads, or the status of the refusal.
    async fn scope(method: &str, path: &str, key: Option<&str>, body: &str) -> Value {
        fn read<T, K>(request: Idempotent<T, K>) -> String {
            let identity = request.identity.as_ref().map(IdempotentRequest::scope);
            serde_json::to_string(&identity).unwrap()
        }
        let router = Router::new()
            .route("/tills", post(async |it: Idempotent<Value, OptionalKey>| read(it)))
            .route("/tills/{till}/counts", post(async |it: Idempotent<EmptyBody>| read(it)))
            .route("/tills/{till}", put(async |it: Idempotent<Value, GeneratedKey>| read(it)))
            .layer(Extension(Callers::unknown()));
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let request = request.header("content-type", "application/json");
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let answer = router.oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        if status == 200 { serde_json::from_slice(&body).unwrap() } else { json!(status) }
    }

    const ID: &str = "/tills/01900000-0000-7000-8000-00000000abcd/counts";

    #[tokio::test]
    async fn a_key_belongs_to_the_path_of_its_request_with_its_decoded_ids() {
        for (path, concrete) in [
            ("/tills/a/counts", "/tills/a/counts"),
            ("/tills/b/counts?of=1", "/tills/b/counts"),
            ("/tills/a%2Fcounts/counts", "/tills/a/counts/counts"),
            ("/tills/%7Btill%7D/counts", "/tills/{till}/counts"),
            // Two spellings of one id are one path.
            ("/tills/01900000-0000-7000-8000-00000000ABCD/counts", ID),
            ("/tills/0190000000007000800000000000abcd/counts", ID),
        ] {
            assert_eq!(scope("POST", path, Some("k"), "").await, json!([concrete, "k"]));
        }
    }

    #[tokio::test]
    async fn a_key_is_required_optional_or_generated() {
        assert_eq!(scope("POST", "/tills/a/counts", None, "").await, json!(400));
        assert_eq!(scope("POST", "/tills", None, "{}").await, json!(null));
        assert_eq!(scope("POST", "/tills", Some("k"), "{}").await, json!(["/tills", "k"]));
        let generated = scope("PUT", "/tills/a", Some("k"), "{}").await;
        assert_eq!(generated[0], json!("/tills/a"));
        assert_ne!(generated[1], json!("k"), "a client's key has no meaning here");
        assert_ne!(scope("PUT", "/tills/a", None, "{}").await, generated);
    }

    #[tokio::test]
    async fn a_body_that_cannot_be_read_is_refused() {
        assert_eq!(scope("POST", "/tills", Some("k"), "{").await, json!(400));
        assert_eq!(scope("POST", "/tills/a/counts", Some("k"), r#"{"a": 1}"#).await, json!(422));
    }
}
