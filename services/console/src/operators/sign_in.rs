//! The page of the sign-in, a token that an operator pastes, and the sign-out.

use axum::Form;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use crate::app::App;
use crate::operators::token_cookies::{self, TokenCookies};
use crate::operators::{Operator, Verdict, code_flow, verify};
use crate::pages::{self, PageError, Section};

#[derive(Deserialize)]
pub struct PastedToken {
    token: String,
}

/// Why there is no page of the control room yet.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub text: String,
}

impl Refusal {
    pub fn new(status: StatusCode, text: impl ToString) -> Refusal {
        Refusal { status, text: text.to_string() }
    }
}

pub async fn show(State(app): State<App>, headers: HeaderMap) -> Response {
    page(&app, &headers, None)
}

/// The page, and what was refused before.
pub fn page(app: &App, headers: &HeaderMap, refusal: Option<Refusal>) -> Response {
    let issuer = app.issuer.as_ref().map(|issuer| issuer.host());
    let body = html! {
        h1 { "Sign in" }
        @if let Some(refusal) = &refusal { p.notice.is-bad role="alert" { (refusal.text) } }
        @if let Some(host) = issuer {
            div.panel.sign-in {
                p { "The control room asks the services with your token, so their audit names you." }
                p { a.button.primary href=(code_flow::START_PATH) { "Sign in at " (host) } }
            }
            details.sign-in { summary { "Paste an access token" } (paste_form(false)) }
        } @else { (paste_form(true)) }
    };
    let status = refusal.map_or(StatusCode::OK, |refusal| refusal.status);
    (status, pages::page(headers, Section::None, "Sign in", body)).into_response()
}

fn paste_form(shows_laptop: bool) -> Markup {
    html! {
        form.panel.sign-in method="post" action="/sign-in" {
            p { "Paste an access token with the scope " code { "operator" } ". "
                "It stays in cookies of this browser, and each request to a service carries it." }
            @if shows_laptop { p.hint { "On a laptop: " code { "make token WHO=you SCOPE=operator" } } }
            label for="token" { "Access token" }
            textarea #token name="token" rows="6" required autocomplete="off" spellcheck="false" {}
            p { button.primary type="submit" { "Sign in" } }
        }
    }
}

pub async fn accept_pasted(
    State(app): State<App>,
    headers: HeaderMap,
    Form(form): Form<PastedToken>,
) -> Response {
    let token = form.token.trim().trim_start_matches("Bearer ");
    match accept(&app, token).await {
        Ok(Ok(cookies)) => (cookies, Redirect::to("/")).into_response(),
        Ok(Err(refusal)) => page(&app, &headers, Some(refusal)),
        Err(error) => error.into_response(),
    }
}

/// The cookies for a token that the services accept.
pub async fn accept(app: &App, token: &str) -> Result<Result<TokenCookies, Refusal>, PageError> {
    let cookies = token_cookies::store(token, app.is_encrypted).filter(|_| !token.is_empty());
    let Some(cookies) = cookies else {
        let text = "This is no access token that the services would accept.";
        return Ok(Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, text)));
    };
    Ok(match verify(app, &Operator(Some(token.to_string()))).await? {
        Verdict::Accepted => Ok(cookies),
        Verdict::Missing => {
            Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "There is no token."))
        }
        Verdict::Refused(reason) => {
            let text = format!("The services refuse this token: {reason}");
            Err(Refusal::new(StatusCode::FORBIDDEN, text))
        }
    })
}

pub async fn sign_out(State(app): State<App>, operator: Operator) -> Response {
    if let Some(token) = operator.token() {
        app.verified.forget(token);
    }
    (token_cookies::remove(), Redirect::to("/sign-in")).into_response()
}
