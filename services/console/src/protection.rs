//! What protects an operator's browser: the hosts that it may ask, the refusal of posts from other sites, and the
//! content policy of every answer.
//!
//! A page of another site can make a browser post here, with the operator's rights. A browser says where a post comes
//! from in `Sec-Fetch-Site`, or in `Origin` if it is old. A site that lets its own name resolve to this address is of
//! the same site, so the name itself is checked too.

use std::net::IpAddr;

use axum::extract::{Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::App;
use crate::pages::PageError;

/// Nothing of another host, no inline script, no inline style, and no frame around a page.
const CONTENT_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; \
    connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'";

const HEADERS: [(HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
];

/// Adds the headers of every answer.
pub async fn set_headers(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// Refuses requests that no page of the control room can have sent.
pub async fn check(State(app): State<App>, request: Request, next: Next) -> Response {
    let refusal = if !is_known_host(request.headers(), &app.settings.hosts) {
        "This is not a host name of the control room: HOSTS lists its host names."
    } else if !request.method().is_safe() && !is_same_origin(request.headers()) {
        "A page of another site has sent this request."
    } else {
        return next.run(request).await;
    };
    PageError::new(StatusCode::FORBIDDEN, refusal).into_response()
}

/// Whether the `Host` is an address, `localhost`, or one of the comma-separated names.
fn is_known_host(headers: &HeaderMap, names: &str) -> bool {
    let Some(host) = host(headers) else { return false };
    let name = host.host().trim_matches(['[', ']']);
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok()
        || names.split(',').any(|known| known.trim().eq_ignore_ascii_case(name))
}

fn host(headers: &HeaderMap) -> Option<Authority> {
    headers.get(header::HOST)?.to_str().ok()?.parse().ok()
}

/// Whether a page of this origin has sent the request.
fn is_same_origin(headers: &HeaderMap) -> bool {
    if let Some(site) = headers.get("sec-fetch-site") {
        return site == "same-origin";
    }
    let origin = headers.get(header::ORIGIN).and_then(|origin| origin.to_str().ok());
    let origin = origin.and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    origin.is_some_and(|origin| host(headers).is_some_and(|host| host.as_str() == origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let of = |(name, value): &(&'static str, &'static str)| {
            (HeaderName::from_static(name), HeaderValue::from_static(value))
        };
        pairs.iter().map(of).collect()
    }

    #[test]
    fn a_name_that_was_not_given_is_refused() {
        for (host, known) in [
            ("localhost:8000", true),
            ("127.0.0.1:8000", true),
            ("[::1]:8000", true),
            ("console.example.com", true),
            ("rebound.example.com:8000", false),
            ("localhost.example.com", false),
            ("", false),
        ] {
            let names = "control.example.com, console.example.com";
            assert_eq!(is_known_host(&headers(&[("host", host)]), names), known, "{host}");
        }
        assert!(!is_known_host(&headers(&[]), ""));
        assert!(!is_known_host(&headers(&[("host", "a")]), ""));
    }

    #[test]
    fn only_a_page_of_the_same_origin_may_post() {
        for (pairs, allowed) in [
            (&[("sec-fetch-site", "same-origin")][..], true),
            (&[("sec-fetch-site", "same-site")], false),
            (&[("sec-fetch-site", "cross-site")], false),
            (&[("sec-fetch-site", "none")], false),
            (&[("host", "localhost:8000"), ("origin", "http://localhost:8000")], true),
            (&[("host", "localhost:8000"), ("origin", "http://localhost:8001")], false),
            (&[("host", "localhost:8000"), ("origin", "null")], false),
            (&[("host", "localhost:8000")], false),
        ] {
            assert_eq!(is_same_origin(&headers(pairs)), allowed, "{pairs:?}");
        }
    }
}
