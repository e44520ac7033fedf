//! A client of a service's routers.

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, header};
use axum::response::Response;
use chassis::{openapi, testing};
use serde_json::Value;
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;

/// A response as a client gets it.
#[derive(Debug)]
pub struct TestResponse {
    /// The HTTP status.
    pub status: u16,
    /// The header `Location`.
    pub location: Option<String>,
    /// The body; null where it is no JSON.
    pub body: Value,
}

/// A client of a router, without a socket between them. Its service knows no callers, unless it is given one.
#[derive(Clone)]
pub struct TestClient(pub Router);

impl TestClient {
    /// A client of the API of a service.
    pub fn of_api(api: OpenApiRouter) -> TestClient {
        TestClient(openapi::serve("test", api))
    }

    /// The same router, as a service that knows its callers serves it to this one. `scopes` are those of the caller's
    /// token.
    pub fn with_caller(&self, subject: &str, scopes: &[&str]) -> TestClient {
        TestClient(testing::router_for(self.0.clone(), subject, scopes))
    }

    /// The same router, as a service that knows its callers serves it to a client without a token.
    pub fn without_token(&self) -> TestClient {
        TestClient(testing::router_without_token(self.0.clone()))
    }

    /// Sends a GET request.
    pub async fn get(&self, uri: &str) -> TestResponse {
        self.send(Method::GET, uri, None, None).await
    }

    /// Sends a PUT request.
    pub async fn put(&self, uri: &str, body: Value) -> TestResponse {
        self.send(Method::PUT, uri, None, Some(body)).await
    }

    /// Sends a POST request, with or without an idempotency key.
    pub async fn post(&self, uri: &str, key: Option<&str>, body: Value) -> TestResponse {
        self.send(Method::POST, uri, key, Some(body)).await
    }

    /// Sends a GET request with headers, and returns the response with its body unread.
    pub async fn get_with_headers(&self, uri: &str, headers: &[(&'static str, &str)]) -> Response {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.extension(testing::unknown_callers());
        let request = request.body(Body::empty()).expect("a request");
        self.0.clone().oneshot(request).await.expect("routers don't fail")
    }

    pub(crate) async fn send(
        &self,
        method: Method,
        uri: &str,
        key: Option<&str>,
        body: Option<Value>,
    ) -> TestResponse {
        let mut request = Request::builder().method(method).uri(uri);
        request = request.extension(testing::unknown_callers());
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let body = match body {
            None => Body::empty(),
            Some(json) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(json.to_string())
            }
        };
        let request = request.body(body).expect("a request");
        let response = self.0.clone().oneshot(request).await.expect("routers don't fail");
        let location = response.headers().get(header::LOCATION);
        let location = location.and_then(|place| Some(place.to_str().ok()?.to_owned()));
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 22).await.expect("a body");
        TestResponse { status, location, body: serde_json::from_slice(&body).unwrap_or_default() }
    }
}
