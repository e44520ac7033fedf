//! The page of the sign-in, a token that an operator pastes, the sign-out, and the check of every other request.

use axum::Form;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use futures::StreamExt;
use maud::{Markup, html};
use ops_client::ServiceError;
use serde::Deserialize;
use tokio::time::sleep;

use crate::app::App;
use crate::operators::token_cookies::{self, TokenCookies};
use crate::operators::{self, Operator, Verdict, comes_from_proxy};
use crate::pages::{self, Notice, PageError, Section};

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
    Ok(match verify(app, &Operator::with_token(token)).await? {
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

async fn verify(app: &App, operator: &Operator) -> Result<Verdict, ServiceError> {
    operators::verify(&app.services, &app.verified, operator).await
}
