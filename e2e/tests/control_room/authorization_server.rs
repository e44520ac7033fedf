//! A small authorization server: the code flow with PKCE for one client. It checks what a real one checks, and its
//! access tokens are signed with the key of the stack.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::extract::{Form, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use axum::{Json, Router};
use launcher::TokenIssuer;
use openssl::base64::{decode_block, encode_block};
use openssl::sha::sha256;
use openssl::ssl::{Ssl, SslAcceptor, SslFiletype, SslMethod};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_openssl::SslStream;

pub const CLIENT_ID: &str = "control-room";
pub const CLIENT_SECRET: &str = "a secret: of two words";

type Fields = HashMap<String, String>;

/// What the server grants to the next operator.
#[derive(Clone)]
pub struct Grant {
    pub name: &'static str,
    pub scopes: String,
    pub lifetime: Duration,
}

/// The server, until it is dropped.
pub struct AuthorizationServer {
    realm: Arc<Realm>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

struct Realm {
    url: String,
    /// Where it sends browsers, and nowhere else.
    callback: String,
    issuer: TokenIssuer,
    grant: Mutex<Grant>,
    /// The requests whose code was not used yet.
    codes: Mutex<HashMap<String, Fields>>,
}

/// A listener of TLS connections.
struct TlsListener(TcpListener, SslAcceptor);

impl Listener for TlsListener {
    type Io = SslStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let Ok((stream, peer)) = self.0.accept().await else { continue };
            let ssl = Ssl::new(self.1.context());
            let Ok(mut stream) = ssl.and_then(|ssl| SslStream::new(ssl, stream)) else { continue };
            if Pin::new(&mut stream).accept().await.is_ok() {
                return (stream, peer);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

impl AuthorizationServer {
    /// Starts it with the certificate of the stack's services, at `localhost`: for a browser another site than
    /// `127.0.0.1`.
    pub fn start(
        listener: TcpListener,
        certificate: &Path,
        issuer: TokenIssuer,
        callback: String,
    ) -> Result<AuthorizationServer> {
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
        acceptor.set_private_key_file(certificate, SslFiletype::PEM)?;
        acceptor.set_certificate_chain_file(certificate)?;
        let url = format!("https://localhost:{}", listener.local_addr()?.port());
        let grant = Grant { name: "", scopes: String::new(), lifetime: Duration::ZERO };
        let realm = Arc::new(Realm {
            url,
            callback,
            issuer,
            grant: Mutex::new(grant),
            codes: Mutex::default(),
        });
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(discover))
            .route("/authorize", get(authorize))
            .route("/token", post(exchange))
            .with_state(realm.clone());
        let listener = TlsListener(listener, acceptor.build());
        let task = tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(AuthorizationServer { realm, task })
    }

    /// What the next operator is granted.
    pub fn grant(&self, grant: Grant) {
        *lock(&self.realm.grant) = grant;
    }
}

impl Drop for AuthorizationServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn discover(State(realm): State<Arc<Realm>>) -> Json<Value> {
    let url = &realm.url;
    Json(json!({
        "issuer": url,
        "authorization_endpoint": format!("{url}/authorize"),
        "token_endpoint": format!("{url}/token"),
        "code_challenge_methods_supported": ["S256"],
    }))
}

/// The page of the sign-in: an operator agrees or does not.
async fn authorize(State(realm): State<Arc<Realm>>, Query(asked): Query<Fields>) -> Response {
    match realm.begin(asked) {
        Ok(page) => Html(page).into_response(),
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error:#}")).into_response(),
    }
}

async fn exchange(
    State(realm): State<Arc<Realm>>,
    headers: HeaderMap,
    Form(asked): Form<Fields>,
) -> Response {
    match realm.exchange(&headers, &asked) {
        Ok(answer) => Json(answer).into_response(),
        Err(error) => {
            let body = json!({"error": "invalid_grant", "error_description": format!("{error:#}")});
            (StatusCode::BAD_REQUEST, Json(body)).into_response()
        }
    }
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn field<'a>(fields: &'a Fields, name: &str) -> Result<&'a str> {
    fields.get(name).map(String::as_str).with_context(|| format!("no {name}"))
}

impl Realm {
    fn begin(&self, asked: Fields) -> Result<String> {
        let expected = [
            ("response_type", "code"),
            ("client_id", CLIENT_ID),
            ("redirect_uri", &self.callback),
            ("code_challenge_method", "S256"),
        ];
        for (name, value) in expected {
            ensure!(field(&asked, name)? == value, "{name} is {:?}", asked.get(name));
        }
        ensure!(field(&asked, "code_challenge")?.len() == 43, "no hash");
        let (state, code) = (field(&asked, "state")?, format!("{:x}", rand::random::<u128>()));
        let iss = self.url.replace(':', "%3A").replace('/', "%2F");
        let back = format!("{}?state={state}&iss={iss}", self.callback);
        let page = format!(
            "<!doctype html><title>Issuer</title><h1>Who are you?</h1>\
             <a id=agree href=\"{back}&code={code}\">Agree</a> \
             <a id=deny href=\"{back}&error=access_denied&error_description=%3Cb%3ENot+you%3C%2Fb%3E\">Deny</a>"
        );
        lock(&self.codes).insert(code, asked);
        Ok(page)
    }

    fn exchange(&self, headers: &HeaderMap, asked: &Fields) -> Result<Value> {
        ensure!(field(asked, "grant_type")? == "authorization_code", "another grant");
        let given = headers.get(header::AUTHORIZATION).context("no client")?.to_str()?;
        let given = decode_block(given.strip_prefix("Basic ").context("no password")?)?;
        let secret = CLIENT_SECRET.replace(':', "%3A").replace(' ', "%20");
        let client = format!("{}:{secret}", CLIENT_ID.replace('-', "%2D"));
        ensure!(given == client.as_bytes(), "another client");
        let begun = lock(&self.codes).remove(field(asked, "code")?).context("an unknown code")?;
        ensure!(field(asked, "redirect_uri")? == self.callback, "another address");
        let hash = base64_url(&sha256(field(asked, "code_verifier")?.as_bytes()));
        ensure!(field(&begun, "code_challenge")? == hash, "another browser began it");
        let grant = lock(&self.grant).clone();
        let token = self.issuer.sign(grant.name, &grant.scopes, grant.lifetime)?;
        let identity = json!({
            "iss": self.url, "aud": CLIENT_ID, "nonce": field(&begun, "nonce")?, "exp": 1e11,
        });
        // Its client trusts the connection in place of a signature.
        let identity = format!("e30.{}.", base64_url(identity.to_string().as_bytes()));
        Ok(json!({"access_token": token, "token_type": "Bearer", "id_token": identity}))
    }
}

fn base64_url(bytes: &[u8]) -> String {
    let text = encode_block(bytes).replace('+', "-").replace('/', "_");
    text.trim_end_matches('=').to_string()
}
