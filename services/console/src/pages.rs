//! The frame around each page: navigation, notices of what was done, and errors.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse, Redirect, Response};
use maud::{DOCTYPE, Markup, html};
use ops_client::ServiceError;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use tokio::time::timeout;

use crate::operators::Operator;
use crate::{assets, cookies};

/// A section of the navigation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Overview,
    Orders,
    DeadLetters,
    Waiting,
    Repair,
    /// Only where the launcher says so.
    Demo,
    /// A page outside of the navigation.
    None,
}

/// Whether the demo is among them: set once, at the start.
pub static HAS_DEMO: AtomicBool = AtomicBool::new(false);

/// Whether operators sign in: set once, at the start.
pub static HAS_SIGN_IN: AtomicBool = AtomicBool::new(false);

/// The sections with their paths and names, from left to right.
pub const SECTIONS: [(Section, &str, &str); 6] = [
    (Section::Overview, "/", "Overview"),
    (Section::Orders, "/orders", "Orders"),
    (Section::DeadLetters, "/dead-letters", "Dead letters"),
    (Section::Waiting, "/waiting", "Waiting"),
    (Section::Repair, "/repair", "Repair"),
    (Section::Demo, "/demo", "Demo"),
];

/// The cookie with the notice that the next page shows.
const NOTICE_COOKIE: &str = "notice";

/// How long a page may take. The server ends a request a second later, and its answer is no page.
pub const PAGE_TIMEOUT: Duration = Duration::from_secs(14);

/// The text of a refusal, at most.
const REFUSAL_BYTES_MAX: usize = 4 * 1024;

/// Longer notices would not fit into the headers of a request.
const NOTICE_CHARS_MAX: usize = 600;

/// A page with the navigation, and with the notice that a redirect left.
pub fn page(headers: &HeaderMap, section: Section, title: &str, body: Markup) -> Response {
    let notice = cookies::read(headers, NOTICE_COOKIE).and_then(parse_notice);
    let has_notice = notice.is_some();
    let signed_in_for = Operator::from_headers(headers).remaining().map(|it| it.as_secs());
    let ended = signed_in_for.filter(|_| has_sign_in(section)).map(sign_in_ended);
    let page =
        frame(section, title, notice, html! { @if let Some(ended) = ended { (ended) } (body) });
    if !has_notice {
        return page.into_response();
    }
    let shown = format!("{NOTICE_COOKIE}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0");
    ([(header::SET_COOKIE, shown)], page).into_response()
}

/// Whether only an operator who is signed in sees this page.
fn has_sign_in(section: Section) -> bool {
    HAS_SIGN_IN.load(Ordering::Relaxed) && section != Section::None
}

/// What a page shows when its operator's token has ended while it was open.
fn sign_in_ended(seconds: u64) -> Markup {
    html! {
        p #sign-in-ended .notice.is-bad role="alert" data-seconds=(seconds) hidden {
            "Your sign-in has expired: this page no longer updates. "
            a href="/sign-in" { "Sign in again" }
        }
    }
}

fn frame(section: Section, title: &str, notice: Option<Notice>, body: Markup) -> Html<String> {
    let has_demo = HAS_DEMO.load(Ordering::Relaxed);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " · Holdfast" }
                link rel="stylesheet" href=(assets::STYLE.path);
                link rel="icon" type="image/svg+xml" href=(assets::ICON.path);
                script src=(assets::SCRIPT.path) defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header.bar {
                    a.brand href="/" { "Holdfast" span { "control room" } }
                    nav aria-label="Sections" {
                        @for (this, path, name) in SECTIONS.into_iter().filter(|it| it.0 != Section::Demo || has_demo) {
                            a href=(path) aria-current=[(this == section).then_some("page")] { (name) }
                        }
                    }
                    @if has_sign_in(section) {
                        form.sign-out method="post" action="/sign-out" { button type="submit" { "Sign out" } }
                    }
                }
                main #main {
                    @if let Some(Notice { text, is_bad }) = notice {
                        p.notice.is-bad[is_bad] role=(if is_bad { "alert" } else { "status" }) { (text) }
                    }
                    (body)
                }
            }
        }
    };
    Html(page.into_string())
}

/// What was done, or why not.
pub struct Notice {
    pub text: String,
    pub is_bad: bool,
}

impl Notice {
    pub fn done(text: impl Into<String>) -> Notice {
        Notice { text: text.into(), is_bad: false }
    }

    pub fn failed(text: impl ToString) -> Notice {
        Notice { text: text.to_string(), is_bad: true }
    }
}

fn parse_notice(value: &str) -> Option<Notice> {
    let (kind, text) = value.split_at_checked(1)?;
    let text = percent_decode_str(text).decode_utf8().ok()?.into_owned();
    Some(Notice { text, is_bad: kind == "!" }).filter(|notice| !notice.text.is_empty())
}

/// Sends the browser to a page that shows the notice: the answer to every post, so that a reload repeats nothing.
pub fn redirect(path: &str, notice: Notice) -> Response {
    let text: String = notice.text.chars().take(NOTICE_CHARS_MAX).collect();
    let text = utf8_percent_encode(&text, NON_ALPHANUMERIC);
    let kind = if notice.is_bad { "!" } else { "-" };
    let cookie =
        format!("{NOTICE_COOKIE}={kind}{text}; HttpOnly; SameSite=Strict; Path=/; Max-Age=30");
    ([(header::SET_COOKIE, cookie)], Redirect::to(path)).into_response()
}

/// The path of the page that sent a form, as far as it is one of ours.
pub fn referer_path(headers: &HeaderMap) -> &str {
    let referer = headers.get(header::REFERER).and_then(|referer| referer.to_str().ok());
    let rest = referer.and_then(|referer| referer.split_once("://")).map(|(_, rest)| rest);
    let path = rest.and_then(|rest| Some(&rest[rest.find('/')?..]));
    path.filter(|path| !path.starts_with("//")).unwrap_or("/")
}

/// A page that says why there is no other.
#[derive(Debug)]
pub struct PageError {
    status: StatusCode,
    text: String,
    /// Whether another token may help.
    needs_sign_in: bool,
}

impl PageError {
    pub fn new(status: StatusCode, text: impl Into<String>) -> PageError {
        PageError { status, text: text.into(), needs_sign_in: false }
    }
}

impl From<ServiceError> for PageError {
    fn from(error: ServiceError) -> PageError {
        let text = error.to_string();
        let status = match error {
            ServiceError::Unreachable { .. } => StatusCode::SERVICE_UNAVAILABLE,
            ServiceError::Unreadable { .. } => StatusCode::BAD_GATEWAY,
            ServiceError::Refused { status, .. } => status,
        };
        PageError { status, text, needs_sign_in: status == StatusCode::UNAUTHORIZED }
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let body = html! {
            h1 { (self.status.canonical_reason().unwrap_or("Error")) }
            p.notice.is-bad role="alert" { (self.text) }
            @if self.needs_sign_in { p { a href="/sign-in" { "Sign in" } } }
            @else { p { a href="/" { "Back to the overview" } } }
        };
        (self.status, frame(Section::None, "Error", None, body)).into_response()
    }
}

/// Answers every failure with a page: also a request that takes too long, or that axum refuses in plain text.
pub async fn show_failures(request: Request, next: Next) -> Response {
    let Ok(response) = timeout(PAGE_TIMEOUT, next.run(request)).await else {
        let text = "The services took too long. Your request may still be carried out.";
        return PageError::new(StatusCode::GATEWAY_TIMEOUT, text).into_response();
    };
    let status = response.status();
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_text = kind.is_some_and(|kind| kind.as_bytes().starts_with(b"text/plain"));
    if !is_text || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let text = to_bytes(response.into_body(), REFUSAL_BYTES_MAX).await.unwrap_or_default();
    PageError::new(status, String::from_utf8_lossy(&text)).into_response()
}

/// The answer to an unknown path.
pub fn not_found() -> Response {
    PageError::new(StatusCode::NOT_FOUND, "There is no page at this address.").into_response()
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::extract::Query;
    use axum::middleware::from_fn;
    use axum::routing::get;
    use tower::ServiceExt;

    use super::*;

    #[test]
    fn a_notice_survives_its_cookie_and_ends_no_header() {
        let text = "Dead letter 1: \"refused\"; Secure\r\nset-cookie: a=b · ß";
        let response = redirect("/dead-letters", Notice::failed(text));
        let cookie = response.headers()[header::SET_COOKIE].to_str().unwrap();
        let mut headers = HeaderMap::new();
        let sent = format!("a=b; {}", cookie.split(';').next().unwrap());
        headers.insert(header::COOKIE, sent.parse().unwrap());
        let value = cookies::read(&headers, NOTICE_COOKIE).unwrap();
        let notice = parse_notice(value).unwrap();
        assert_eq!((&*notice.text, notice.is_bad), (text, true));
        assert!(parse_notice("").is_none());
    }

    #[tokio::test]
    async fn every_failure_is_a_page() {
        #[derive(serde::Deserialize)]
        struct Parameters {
            #[allow(dead_code, reason = "it is only read")]
            after: i64,
        }
        let router = Router::new()
            .route("/", get(async |_: Query<Parameters>| "a page"))
            .method_not_allowed_fallback(async || {
                PageError::new(StatusCode::METHOD_NOT_ALLOWED, "no")
            })
            .layer(from_fn(show_failures));
        for (method, uri, status) in [("GET", "/?after=abc", 400), ("POST", "/?after=1", 405)] {
            let request = Request::builder().method(method).uri(uri).body(Body::empty()).unwrap();
            let answer = router.clone().oneshot(request).await.unwrap();
            assert_eq!(answer.status(), status);
            let page = to_bytes(answer.into_body(), 1024 * 1024).await.unwrap();
            let page = String::from_utf8(page.to_vec()).unwrap();
            assert!(
                page.contains("control room") && page.contains("Back to the overview"),
                "{page}"
            );
        }
    }

    #[test]
    fn what_a_record_contains_is_text_on_a_page() {
        let notice = Some(Notice::failed("<script>alert(1)</script>"));
        let Html(page) = frame(Section::None, "<b>", notice, html! { p { "<i>" } });
        for tag in ["<script>alert", "<b>", "<i>"] {
            assert!(!page.contains(tag), "{page}");
        }
    }
}
