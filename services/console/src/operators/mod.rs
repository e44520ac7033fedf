//! The operators who use the pages. On a secured stack an operator signs in at oauth2-proxy, which stands in front and
//! passes on the access token, or pastes one. Each request to a service carries the token, so that the audit of the
//! services names the person. The services check the token, whichever way it came; the control room only asks one of
//! them whether it is good.

mod claims; // what a token states
mod sign_in; // the page, a pasted token, and the sign-out
mod token_cookies; // where the token is kept

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::{get, post};
use futures::StreamExt;
use parking_lot::Mutex;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::time::sleep;

use crate::app::App;
use crate::operators::claims::Claims;
use crate::pages::{self, Notice, PageError};
use crate::services::{Port, ServiceError};

/// How long a token that a service accepted counts as good here. The services check it at each request all the same.
const VERIFIED_FOR: Duration = Duration::from_secs(60);

/// Tokens that are remembered, at most.
const VERIFIED_MAX: usize = 1_000;

/// The header of oauth2-proxy with the access token of its session.
const PROXY_TOKEN: &str = "x-forwarded-access-token";

/// The operator of a request.
#[derive(Clone, Debug, Default)]
pub struct Operator(Option<String>);

impl Operator {
    /// The access token, where the stack is secured.
    pub fn token(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// The operator whose token the proxy passes on, or the cookies of a pasted token hold.
    pub fn from_headers(headers: &HeaderMap) -> Operator {
        let passed_on = headers.get(PROXY_TOKEN).and_then(|token| token.to_str().ok());
        Operator(passed_on.map(str::to_string).or_else(|| token_cookies::read(headers)))
    }

    /// How long the token is valid, if it says so.
    pub fn remaining(&self) -> Option<Duration> {
        self.token().and_then(Claims::parse)?.remaining()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Operator {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Operator, Infallible> {
        Ok(Operator::from_headers(&parts.headers))
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

/// What became of the question whether a token is good.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Accepted,
    /// The request has no token.
    Missing,
    /// With the reason.
    Refused(String),
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
    let verdict = match verify(&app, &operator).await {
        Ok(verdict) => verdict,
        Err(error) => return PageError::from(error).into_response(),
    };
    let refusal = match verdict {
        Verdict::Accepted => return end_with_token(next.run(request).await, &operator),
        // The stream of a page cannot show another page.
        _ if asks_for_stream(&request) => return StatusCode::UNAUTHORIZED.into_response(),
        Verdict::Missing => return Redirect::to("/sign-in").into_response(),
        // That page says why.
        Verdict::Refused(_)
            if request.method().is_safe() && comes_from_proxy(request.headers()) =>
        {
            return Redirect::to("/sign-in").into_response();
        }
        Verdict::Refused(refusal) => refusal,
    };
    let loss =
        if *request.method() == Method::POST { " Your request was not carried out." } else { "" };
    let notice = Notice::failed(format!("You are signed out. {refusal}{loss}"));
    (token_cookies::remove(), pages::redirect("/sign-in", notice)).into_response()
}

/// Whether oauth2-proxy has added the token.
fn comes_from_proxy(headers: &HeaderMap) -> bool {
    headers.contains_key(PROXY_TOKEN)
}

fn asks_for_stream(request: &Request) -> bool {
    request.headers().get(header::ACCEPT).is_some_and(|accepted| accepted == "text/event-stream")
}

/// Ends a stream with the token of its operator. All other answers end by themselves.
fn end_with_token(response: Response, operator: &Operator) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_stream = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
    match operator.remaining().filter(|_| is_stream) {
        Some(remaining) => response.map(|body| {
            Body::from_stream(body.into_data_stream().take_until(Box::pin(sleep(remaining))))
        }),
        None => response,
    }
}

/// Asks the services, one after the other, until one accepts or refuses the token.
async fn verify(app: &App, operator: &Operator) -> Result<Verdict, ServiceError> {
    let Some(token) = operator.token() else { return Ok(Verdict::Missing) };
    if operator.remaining().is_some_and(|remaining| remaining.is_zero()) {
        return Ok(Verdict::Refused("The access token has expired.".to_string()));
    }
    let age = app.verified.age(token);
    if age.is_some_and(|age| age < VERIFIED_FOR) {
        return Ok(Verdict::Accepted);
    }
    let mut unreachable = None;
    for service in &app.services.names {
        let asked =
            app.services.get::<Value>(operator, (&**service, Port::Admin), "/consumer").await;
        match asked {
            Ok(_) => {
                app.verified.store(token);
                return Ok(Verdict::Accepted);
            }
            Err(ServiceError::Refused { status, detail, .. })
                if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) =>
            {
                app.verified.forget(token);
                return Ok(Verdict::Refused(detail));
            }
            Err(error) => unreachable = Some(error),
        }
    }
    match (age, unreachable) {
        // An outage of every service is what an operator wants to see.
        (Some(_), _) => Ok(Verdict::Accepted),
        (None, Some(error)) => Err(error),
        (None, None) => {
            Ok(Verdict::Refused("There is no service that could check it.".to_string()))
        }
    }
}

/// The pages of the sign-in.
pub fn router() -> Router<App> {
    Router::new()
        .route("/sign-in", get(sign_in::show).post(sign_in::accept_pasted))
        .route("/sign-out", post(sign_in::sign_out))
}
