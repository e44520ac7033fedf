//! The page of the sign-in, a token that an operator pastes, and the sign-out.

use axum::Form;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use serde::Deserialize;

use crate::app::App;
use crate::operators::token_cookies::{self, TokenCookies};
use crate::operators::{Operator, Verdict, comes_from_proxy, verify};
use crate::pages::{self, PageError, Section};

#[derive(Deserialize)]
pub struct PastedToken {
    token: String,
}

/// Why there is no page of the control room yet.
#[derive(Debug)]
struct Refusal {
    status: StatusCode,
    text: String,
}

impl Refusal {
    fn new(status: StatusCode, text: impl ToString) -> Refusal {
        Refusal { status, text: text.to_string() }
    }

    fn of_token(reason: &str) -> Refusal {
        Refusal::new(StatusCode::FORBIDDEN, format!("The services refuse this token: {reason}"))
    }
}

/// The page says why the token of the proxy is refused. The notice of a redirect would not do: a browser that comes from
/// the issuer's site does not send its cookie.
pub async fn show(State(app): State<App>, operator: Operator, headers: HeaderMap) -> Response {
    let refusal = match verify(&app, &operator).await {
        Ok(Verdict::Refused(reason)) => Some(Refusal::of_token(&reason)),
        _ => None,
    };
    page(&app, &headers, refusal)
}

/// The page, and what was refused before.
fn page(app: &App, headers: &HeaderMap, refusal: Option<Refusal>) -> Response {
    let proxy = app.settings.oauth2_proxy_prefix.as_ref();
    let body = html! {
        h1 { "Sign in" }
        @if let Some(refusal) = &refusal { p.notice.is-bad role="alert" { (refusal.text) } }
        @if let Some(prefix) = proxy {
            div.panel.sign-in {
                p { "The control room asks the services with your token, so their audit names you." }
                p { a.button.primary href={ (prefix) "/sign_out" } { "Sign in with another account" } }
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
async fn accept(app: &App, token: &str) -> Result<Result<TokenCookies, Refusal>, PageError> {
    let cookies = token_cookies::store(token, app.is_encrypted).filter(|_| !token.is_empty());
    let Some(cookies) = cookies else {
        let text = "The services would not accept this access token.";
        return Ok(Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, text)));
    };
    Ok(match verify(app, &Operator(Some(token.to_string()))).await? {
        Verdict::Accepted => Ok(cookies),
        Verdict::Missing => {
            Err(Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, "There is no token."))
        }
        Verdict::Refused(reason) => Err(Refusal::of_token(&reason)),
    })
}

/// Ends the session of the proxy too, if the token came from it.
pub async fn sign_out(State(app): State<App>, operator: Operator, headers: HeaderMap) -> Response {
    if let Some(token) = operator.token() {
        app.verified.forget(token);
    }
    let prefix = app.settings.oauth2_proxy_prefix.as_ref();
    let prefix = prefix.filter(|_| comes_from_proxy(&headers));
    let page = prefix.map_or("/sign-in".to_string(), |prefix| format!("{prefix}/sign_out"));
    (token_cookies::remove(), Redirect::to(&page)).into_response()
}
