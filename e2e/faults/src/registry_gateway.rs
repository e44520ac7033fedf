//! A gateway in front of the schema registry that responds to some requests itself.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// The configured responses: by a part of the path, a status and a body.
type CannedResponse = (String, StatusCode, String);

/// A gateway on a port of its own, which ends when it is dropped.
pub struct RegistryGateway {
    addr: SocketAddr,
    base_path: String,
    canned_responses: Arc<Mutex<Vec<CannedResponse>>>,
    serve_task: JoinHandle<()>,
}

#[derive(Clone)]
struct GatewayState {
    origin: String,
    canned_responses: Arc<Mutex<Vec<CannedResponse>>>,
    client: reqwest::Client,
}

impl RegistryGateway {
    /// Forwards everything to the registry at this URL.
    pub async fn start(registry_url: &str) -> Result<RegistryGateway> {
        let url = reqwest::Url::parse(registry_url)?;
        let refusals = Arc::<Mutex<Vec<CannedResponse>>>::default();
        let shared = GatewayState {
            origin: url.origin().ascii_serialization(),
            canned_responses: refusals.clone(),
            client: reqwest::Client::builder().no_proxy().build()?,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        let router = Router::new().fallback(handle_request).with_state(shared);
        let serving = tokio::spawn(async {
            let _ = axum::serve(listener, router).await;
        });
        let base_path = url.path().trim_end_matches('/').to_string();
        Ok(RegistryGateway { addr, base_path, canned_responses: refusals, serve_task: serving })
    }

    /// The value of `SCHEMA_REGISTRY_URL` for this gateway.
    pub fn url(&self) -> String {
        format!("http://{}{}", self.addr, self.base_path)
    }

    /// Responds to requests whose path contains this text with an error code of the registry: 40301
    /// with 403, for instance.
    pub fn reject(&self, path: &str, status: u16, error_code: u32) {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = format!(r#"{{"error_code":{error_code},"message":"refused by the gateway"}}"#);
        self.lock().push((path.to_string(), status, body));
    }

    /// Forwards everything from now on.
    pub fn forward_all(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<CannedResponse>> {
        self.canned_responses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RegistryGateway {
    fn drop(&mut self) {
        self.serve_task.abort();
    }
}

async fn handle_request(
    State(shared): State<GatewayState>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let refusal = {
        let refusals = shared.canned_responses.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.iter().find(|(path, ..)| uri.path().contains(path.as_str())).cloned()
    };
    if let Some((_, status, body)) = refusal {
        let kind = "application/vnd.schemaregistry.v1+json";
        return (status, [(header::CONTENT_TYPE, kind)], body).into_response();
    }
    let url = format!("{}{uri}", shared.origin);
    let mut request = shared.client.request(method, url).body(body);
    for name in [header::CONTENT_TYPE, header::ACCEPT, header::AUTHORIZATION] {
        if let Some(value) = headers.get(&name) {
            request = request.header(name, value);
        }
    }
    match request.send().await {
        Ok(answer) => {
            let (status, kind) =
                (answer.status(), answer.headers().get(header::CONTENT_TYPE).cloned());
            let body = Body::from(answer.bytes().await.unwrap_or_default());
            let mut response = (status, body).into_response();
            if let Some(kind) = kind {
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
            }
            response
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}
