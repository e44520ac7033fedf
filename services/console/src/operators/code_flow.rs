//! The sign-in at an issuer: the authorization code flow with PKCE (RFC 6749, RFC 7636, RFC 9700).
//!
//! The browser comes back from another site, and sends no cookie with `SameSite=Strict` then. So the cookie that holds
//! the state is `Lax`, and only the callback gets it. The callback does not redirect, because a browser counts a
//! redirect as part of what the other site began, and would send the token with none of it. It answers with a page,
//! which goes on by itself.

use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Redirect, Response};
use maud::html;
use serde::Deserialize;

use crate::app::App;
use crate::operators::issuer::{Issuer, IssuerError};
use crate::operators::pending::{PendingSignIns, SIGN_IN_TIMEOUT, SignInAttempt};
use crate::operators::sign_in::{self, Refusal};
use crate::operators::token_cookies::TokenCookies;
use crate::pages::{self, PageError, Section};

pub const START_PATH: &str = "/sign-in/start";
pub const CALLBACK_PATH: &str = "/sign-in/callback";

/// The cookie that ties a sign-in to the browser that began it.
const STATE_COOKIE: &str = "sign_in_state";

/// A page that goes on by itself, without a script.
const REFRESH: (HeaderName, &str) = (HeaderName::from_static("refresh"), "0; url=/");

/// What the issuer sends the browser with.
#[derive(Deserialize)]
pub struct Callback {
    #[serde(default)]
    state: String,
    code: Option<String>,
    iss: Option<String>,
    error: Option<String>,
    error_description: Option<String>,
}

impl From<IssuerError> for Refusal {
    fn from(error: IssuerError) -> Refusal {
        tracing::warn!(reason = ?error.to_string(), "the issuer signed no operator in");
        let status = match error {
            IssuerError::Unavailable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            IssuerError::Unusable { .. } => StatusCode::BAD_GATEWAY,
            IssuerError::Refused { .. } => StatusCode::FORBIDDEN,
        };
        Refusal::new(status, error)
    }
}

/// Sends the browser to the issuer.
pub async fn start(State(app): State<App>, headers: HeaderMap) -> Response {
    let Some(issuer) = &app.issuer else { return pages::not_found() };
    // The check of each request has accepted this host, and the issuer accepts the addresses that it knows alone.
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let scheme = if app.is_encrypted { "https" } else { "http" };
    let begun = app.pending_sign_ins.begin(format!("{scheme}://{host}{CALLBACK_PATH}"));
    let (state, attempt) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let text = error.to_string();
            return PageError::new(StatusCode::INTERNAL_SERVER_ERROR, text).into_response();
        }
    };
    match issuer.sign_in_url(&state, &attempt).await {
        Ok(url) => (state_cookie(&app, &state), Redirect::to(url.as_str())).into_response(),
        Err(error) => sign_in::page(&app, &headers, Some(error.into())),
    }
}

/// Takes the browser back.
pub async fn finish(
    State(app): State<App>,
    headers: HeaderMap,
    Query(callback): Query<Callback>,
) -> Response {
    let Some(issuer) = &app.issuer else { return pages::not_found() };
    let ended = state_cookie(&app, "");
    match complete(&app, issuer, &headers, callback).await {
        Ok(Ok(cookies)) => (ended, cookies, [REFRESH], signed_in(&headers)).into_response(),
        Ok(Err(refusal)) => (ended, sign_in::page(&app, &headers, Some(refusal))).into_response(),
        Err(error) => (ended, error).into_response(),
    }
}

fn signed_in(headers: &HeaderMap) -> Response {
    let body = html! {
        h1 { "You are signed in" }
        p { a href="/" { "Go on to the overview" } }
    };
    pages::page(headers, Section::None, "You are signed in", body)
}

/// The cookie with the state of a sign-in, or without any.
fn state_cookie(app: &App, state: &str) -> AppendHeaders<[(HeaderName, String); 1]> {
    let secure = if app.is_encrypted { "; Secure" } else { "" };
    let age = if state.is_empty() { 0 } else { SIGN_IN_TIMEOUT.as_secs() };
    let cookie = format!(
        "{STATE_COOKIE}={state}; HttpOnly; SameSite=Lax; Path={CALLBACK_PATH}; Max-Age={age}{secure}"
    );
    AppendHeaders([(header::SET_COOKIE, cookie)])
}

/// The sign-in that this browser began, if this is the first answer to it.
fn begun_here(pending: &PendingSignIns, headers: &HeaderMap, state: &str) -> Option<SignInAttempt> {
    let is_of_browser = pages::cookie(headers, STATE_COOKIE) == Some(state);
    pending.take(state).filter(|_| is_of_browser)
}

async fn complete(
    app: &App,
    issuer: &Issuer,
    headers: &HeaderMap,
    callback: Callback,
) -> Result<Result<TokenCookies, Refusal>, PageError> {
    // Until this is known, no text of the request is shown: another site may have made it.
    let Some(attempt) = begun_here(&app.pending_sign_ins, headers, &callback.state) else {
        let text = "This sign-in is not known here: it took too long, is over already, or began in another browser.";
        return Ok(Err(Refusal::new(StatusCode::FORBIDDEN, text)));
    };
    match exchange(issuer, callback, &attempt).await {
        Ok(token) => sign_in::accept(app, &token).await,
        Err(error) => Ok(Err(error.into())),
    }
}

async fn exchange(
    issuer: &Issuer,
    callback: Callback,
    attempt: &SignInAttempt,
) -> Result<String, IssuerError> {
    issuer.check_sender(callback.iss.as_deref())?;
    match (callback.code, callback.error) {
        (_, Some(error)) => Err(issuer.refused(&error, callback.error_description.as_deref())),
        (Some(code), None) => issuer.exchange(&code, attempt).await,
        (None, None) => Err(issuer.refused("it sent no code", None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_counts_once_and_in_the_browser_that_began() {
        let pending = PendingSignIns::default();
        let begin = || pending.begin("http://localhost/sign-in/callback".to_string()).unwrap().0;
        let browser = |state: &str| {
            let cookie = format!("a=b; {STATE_COOKIE}={state}").parse().unwrap();
            HeaderMap::from_iter([(header::COOKIE, cookie)])
        };
        let state = begin();
        assert!(begun_here(&pending, &browser(&state), &state).is_some());
        assert!(begun_here(&pending, &browser(&state), &state).is_none(), "a second answer");
        let state = begin();
        assert!(begun_here(&pending, &HeaderMap::new(), &state).is_none(), "no cookie");
        let (state, other) = (begin(), begin());
        assert!(begun_here(&pending, &browser(&other), &state).is_none(), "another browser");
        assert!(begun_here(&pending, &browser("guess"), "guess").is_none());
        assert!(begun_here(&pending, &browser(""), "").is_none());
    }
}
