//! A small issuer for oauth2-proxy, which speaks the code flow with it. Its access tokens are signed with the key of the
//! stack, as the services demand, and its identity tokens with a key of its own. It checks only who its client is: the
//! flow itself is oauth2-proxy's.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use axum::extract::{Form, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use axum::serve::Listener;
use axum::{Json, Router};
use chrono::Utc;
use launcher::TokenIssuer;
use openssl::base64::{decode_block, encode_block};
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::sign::Signer;
use openssl::ssl::{Ssl, SslAcceptor, SslFiletype, SslMethod};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_openssl::SslStream;

pub const CLIENT_SECRET: &str = "a-secret-of-some-words";

type Fields = HashMap<String, String>;

/// What the issuer grants to the next operator.
#[derive(Clone)]
pub struct Grant {
    pub name: &'static str,
    pub scopes: String,
    pub lifetime: Duration,
    /// Whether tokens are renewed.
    pub is_renewed: bool,
}

/// The issuer, until it is dropped.
pub struct AuthorizationServer {
    realm: Arc<Realm>,
    task: tokio::task::JoinHandle<std::io::Result<()>>,
}

struct Realm {
    url: String,
    issuer: TokenIssuer,
    identity_key: PKey<Private>,
    grant: Mutex<Grant>,
    /// The nonce of each sign-in whose code was not used yet.
    nonces: Mutex<HashMap<String, String>>,
    renewals: AtomicU32,
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
    /// Starts it at `localhost`: for a browser another site than `127.0.0.1`.
    pub async fn start(certificate: &Path, issuer: TokenIssuer) -> Result<AuthorizationServer> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
        acceptor.set_private_key_file(certificate, SslFiletype::PEM)?;
        acceptor.set_certificate_chain_file(certificate)?;
        let no_grant =
            Grant { name: "", scopes: String::new(), lifetime: Duration::ZERO, is_renewed: false };
        let realm = Arc::new(Realm {
            url: format!("https://localhost:{}", listener.local_addr()?.port()),
            issuer,
            identity_key: PKey::from_rsa(Rsa::generate(2048)?)?,
            grant: Mutex::new(no_grant),
            nonces: Mutex::default(),
            renewals: AtomicU32::new(0),
        });
        let routes = Router::new()
            .route("/.well-known/openid-configuration", get(discover))
            .route("/keys", get(keys))
            .route("/authorize", get(authorize))
            .route("/token", post(exchange))
            .with_state(realm.clone());
        let listener = TlsListener(listener, acceptor.build());
        let task = tokio::spawn(async move { axum::serve(listener, routes).await });
        Ok(AuthorizationServer { realm, task })
    }

    pub fn url(&self) -> &str {
        &self.realm.url
    }

    /// What the next operator is granted.
    pub fn grant(&self, grant: Grant) {
        *self.realm.grant.lock() = grant;
    }

    /// How many tokens were renewed.
    pub fn renewals(&self) -> u32 {
        self.realm.renewals.load(Ordering::Relaxed)
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
        "jwks_uri": format!("{url}/keys"),
        "code_challenge_methods_supported": ["S256"],
        "id_token_signing_alg_values_supported": ["RS256"],
    }))
}

async fn keys(State(realm): State<Arc<Realm>>) -> Json<Value> {
    let key = realm.identity_key.rsa().expect("it is one");
    let [n, e] = [key.n(), key.e()].map(|number| base64_url(&number.to_vec()));
    Json(
        json!({"keys": [{"kty": "RSA", "alg": "RS256", "use": "sig", "kid": "1", "n": n, "e": e}]}),
    )
}

/// The page of the sign-in: an operator agrees or does not.
async fn authorize(State(realm): State<Arc<Realm>>, Query(asked): Query<Fields>) -> Response {
    match realm.begin(&asked) {
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

fn field<'a>(fields: &'a Fields, name: &str) -> Result<&'a str> {
    fields.get(name).map(String::as_str).with_context(|| format!("no {name}"))
}

impl Realm {
    fn begin(&self, asked: &Fields) -> Result<String> {
        ensure!(field(asked, "code_challenge_method")? == "S256", "no PKCE");
        let (state, back) = (field(asked, "state")?, field(asked, "redirect_uri")?);
        let code = format!("{:x}", rand::random::<u128>());
        self.nonces.lock().insert(code.clone(), field(asked, "nonce")?.to_string());
        Ok(format!(
            "<!doctype html><title>Issuer</title><h1>Who are you?</h1>\
             <a id=agree href=\"{back}?state={state}&code={code}\">Agree</a> \
             <a id=deny href=\"{back}?state={state}&error=access_denied\">Deny</a>"
        ))
    }

    fn exchange(&self, headers: &HeaderMap, asked: &Fields) -> Result<Value> {
        ensure!(is_client(headers, asked), "another client");
        let grant = self.grant.lock().clone();
        let nonce = match field(asked, "grant_type")? {
            "refresh_token" => {
                ensure!(grant.is_renewed, "this session has ended");
                self.renewals.fetch_add(1, Ordering::Relaxed);
                None
            }
            _ => Some(self.nonces.lock().remove(field(asked, "code")?).context("an unknown code")?),
        };
        let seconds = grant.lifetime.as_secs();
        let mut answer = json!({
            "access_token": self.issuer.sign(grant.name, &grant.scopes, grant.lifetime)?,
            "refresh_token": "r", "token_type": "Bearer", "expires_in": seconds,
        });
        if let Some(nonce) = nonce {
            let now = Utc::now().timestamp();
            let claims = json!({
                "iss": self.url, "aud": "control-room", "sub": grant.name, "nonce": nonce,
                "iat": now, "exp": now + seconds as i64,
            });
            answer["id_token"] = self.sign_identity(&claims)?.into();
        }
        Ok(answer)
    }

    fn sign_identity(&self, claims: &Value) -> Result<String> {
        let header = json!({"alg": "RS256", "kid": "1", "typ": "JWT"});
        let [header, claims] = [&header, claims].map(|it| base64_url(it.to_string().as_bytes()));
        let signed = format!("{header}.{claims}");
        let mut signer = Signer::new(MessageDigest::sha256(), &self.identity_key)?;
        signer.update(signed.as_bytes())?;
        Ok(format!("{signed}.{}", base64_url(&signer.sign_to_vec()?)))
    }
}

/// A client names itself in a header, or in the form.
fn is_client(headers: &HeaderMap, asked: &Fields) -> bool {
    let basic = || {
        let basic = headers.get(header::AUTHORIZATION)?.to_str().ok()?.strip_prefix("Basic ")?;
        String::from_utf8(decode_block(basic).ok()?).ok()
    };
    let form = asked.get("client_secret").map(|secret| format!("control-room:{secret}"));
    basic().or(form).is_some_and(|client| client == format!("control-room:{CLIENT_SECRET}"))
}

fn base64_url(bytes: &[u8]) -> String {
    let text = encode_block(bytes).replace('+', "-").replace('/', "_");
    text.trim_end_matches('=').to_string()
}
