//! Who looks at the pages. On a secured stack an operator pastes an access token, which a cookie keeps and each
//! request to a service carries, so that the audit of the services names the person. The services check the token;
//! the control room only asks one of them whether it is good.

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use axum::{Form, Router};
use maud::html;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::app::App;
use crate::pages::{self, PageError, Section};
use crate::services::{Port, ServiceError};

const COOKIE: &str = "operator_token";

/// How long a token that a service accepted counts as good here. The services check it at each request all the same.
const VERIFIED_FOR: Duration = Duration::from_secs(60);

/// Tokens that are remembered, at most.
const VERIFIED_MAX: usize = 1_000;

/// The operator of a request.
#[derive(Clone, Debug, Default)]
pub struct Operator(Option<String>);

impl Operator {
    /// The access token, where the stack is secured.
    pub fn token(&self) -> Option<&str> {
        self.0.as_deref()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Operator {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Operator, Infallible> {
        Ok(Operator(pages::cookie(&parts.headers, COOKIE).map(str::to_string)))
    }
}

/// The digests of tokens that a service accepted lately.
#[derive(Default)]
pub struct VerifiedTokens(Mutex<HashMap<[u8; 32], Instant>>);

impl VerifiedTokens {
    fn age(&self, token: &str) -> Option<Duration> {
        self.0.lock().get(&digest(token)).map(Instant::elapsed)
    }

    fn store(&self, token: &str) {
        let mut verified = self.0.lock();
        if verified.len() >= VERIFIED_MAX {
            verified.retain(|_, at| at.elapsed() < VERIFIED_FOR);
        }
        if verified.len() < VERIFIED_MAX {
            verified.insert(digest(token), Instant::now());
        }
    }

    fn forget(&self, token: &str) {
        self.0.lock().remove(&digest(token));
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// Lets a request pass whose token a service accepts, and every request where the stack knows no callers.
pub async fn require(
    State(app): State<App>,
    operator: Operator,
    request: Request,
    next: Next,
) -> Response {
    if !app.settings.sign_in {
        return next.run(request).await;
    }
    match verify(&app, &operator).await {
        Ok(true) => next.run(request).await,
        Ok(false) => Redirect::to("/sign-in").into_response(),
        Err(error) => PageError::from(error).into_response(),
    }
}

/// Asks the services, one after the other, until one accepts or refuses the token.
async fn verify(app: &App, operator: &Operator) -> Result<bool, ServiceError> {
    let Some(token) = operator.token() else { return Ok(false) };
    let age = app.verified.age(token);
    if age.is_some_and(|age| age < VERIFIED_FOR) {
        return Ok(true);
    }
    let mut unreachable = None;
    for service in &app.services.names {
        let asked =
            app.services.get::<Value>(operator, (&**service, Port::Admin), "/consumer").await;
        match asked {
            Ok(_) => {
                app.verified.store(token);
                return Ok(true);
            }
            Err(ServiceError::Refused { status, .. })
                if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) =>
            {
                app.verified.forget(token);
                return Ok(false);
            }
            Err(error) => unreachable = Some(error),
        }
    }
    match (age, unreachable) {
        // An outage of every service is what an operator wants to see.
        (Some(_), _) => Ok(true),
        (None, Some(error)) => Err(error),
        (None, None) => Ok(false),
    }
}

/// The pages of the sign-in.
pub fn router() -> Router<App> {
    Router::new()
        .route("/sign-in", get(show_sign_in).post(sign_in))
        .route("/sign-out", post(sign_out))
}

async fn show_sign_in(headers: HeaderMap) -> Response {
    sign_in_page(&headers, StatusCode::OK, None)
}

fn sign_in_page(headers: &HeaderMap, status: StatusCode, refusal: Option<&str>) -> Response {
    let body = html! {
        h1 { "Sign in" }
        @if let Some(refusal) = refusal { p.notice.is-bad role="alert" { (refusal) } }
        form.panel.sign-in method="post" action="/sign-in" {
            p { "Paste an access token with the scope " code { "operator" } ". "
                "It stays in a cookie of this browser, and each request to a service carries it." }
            p.hint { "On a laptop: " code { "make token WHO=you SCOPE=operator" } }
            label for="token" { "Access token" }
            textarea #token name="token" rows="6" required autocomplete="off" spellcheck="false" {}
            p { button.primary type="submit" { "Sign in" } }
        }
    };
    (status, pages::page(headers, Section::None, "Sign in", body)).into_response()
}

#[derive(Deserialize)]
struct SignInForm {
    token: String,
}

async fn sign_in(
    State(app): State<App>,
    headers: HeaderMap,
    Form(form): Form<SignInForm>,
) -> Response {
    let token = form.token.trim().trim_start_matches("Bearer ").to_string();
    // A token is letters, digits, dots and dashes: nothing that would end the cookie.
    let is_plain = token.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._~+/=".contains(&c));
    if token.is_empty() || !is_plain {
        let refusal = Some("This is no access token.");
        return sign_in_page(&headers, StatusCode::UNPROCESSABLE_ENTITY, refusal);
    }
    match verify(&app, &Operator(Some(token.clone()))).await {
        Ok(true) => {
            let secure = if app.is_encrypted { "; Secure" } else { "" };
            let cookie = format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/{secure}");
            ([(header::SET_COOKIE, cookie)], Redirect::to("/")).into_response()
        }
        Ok(false) => {
            let refusal = "The services refuse this token: it has ended, or lacks the scope.";
            sign_in_page(&headers, StatusCode::FORBIDDEN, Some(refusal))
        }
        Err(error) => PageError::from(error).into_response(),
    }
}

async fn sign_out(State(app): State<App>, operator: Operator) -> Response {
    if let Some(token) = operator.token() {
        app.verified.forget(token);
    }
    let cookie = format!("{COOKIE}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0");
    ([(header::SET_COOKIE, cookie)], Redirect::to("/sign-in")).into_response()
}
