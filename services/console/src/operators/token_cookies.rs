//! The cookies that hold an operator's token. A browser stores up to 4 KiB in one cookie, and a token with many claims
//! is larger, so it is split. The control room itself keeps no token: a restart signs out no operator.

use axum::http::{HeaderMap, HeaderName, header};
use axum::response::AppendHeaders;

use crate::cookies;

/// The cookies in their sequence.
const NAMES: [&str; 3] = ["operator_token", "operator_token_1", "operator_token_2"];

/// Their names where the pages have HTTPS: no other host and no page without HTTPS can set such a cookie.
const HOST_NAMES: [&str; 3] =
    ["__Host-operator_token", "__Host-operator_token_1", "__Host-operator_token_2"];

/// What one cookie holds. With its name and attributes it is shorter than what a browser stores.
const PART_BYTES_MAX: usize = 3_000;

/// The services refuse longer tokens.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// The headers of an answer that change these cookies.
pub type TokenCookies = AppendHeaders<Vec<(HeaderName, String)>>;

/// The token of a request.
pub fn read(headers: &HeaderMap) -> Option<String> {
    [HOST_NAMES, NAMES].iter().find_map(|names| {
        let parts = names.iter().map_while(|name| cookies::read(headers, name));
        Some(parts.collect()).filter(|token: &String| !token.is_empty())
    })
}

/// The headers that store a token and remove what is left of a longer one; `None` if it cannot be stored.
pub fn store(token: &str, is_encrypted: bool) -> Option<TokenCookies> {
    if token.len() > TOKEN_BYTES_MAX || !is_plain(token) {
        return None;
    }
    let (names, secure) = if is_encrypted { (HOST_NAMES, "; Secure") } else { (NAMES, "") };
    let mut parts = token.as_bytes().chunks(PART_BYTES_MAX);
    let cookies = names.map(|name| match parts.next() {
        Some(part) => {
            let part = String::from_utf8_lossy(part);
            format!("{name}={part}; HttpOnly; SameSite=Strict; Path=/{secure}")
        }
        None => removal(name),
    });
    Some(to_headers(cookies))
}

/// The headers that remove a token.
pub fn remove() -> TokenCookies {
    to_headers(HOST_NAMES.into_iter().chain(NAMES).map(removal))
}

/// A token is letters, digits and some other characters: nothing that would end the cookie.
fn is_plain(token: &str) -> bool {
    token.bytes().all(|c| c.is_ascii_alphanumeric() || b"-._~+/=".contains(&c))
}

/// A browser changes a cookie with the prefix `__Host-` only by a header with `Secure`.
fn removal(name: &str) -> String {
    let secure = if name.starts_with("__Host-") { "; Secure" } else { "" };
    format!("{name}=; HttpOnly; SameSite=Strict; Path=/; Max-Age=0{secure}")
}

fn to_headers(cookies: impl IntoIterator<Item = String>) -> TokenCookies {
    AppendHeaders(cookies.into_iter().map(|cookie| (header::SET_COOKIE, cookie)).collect())
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;

    use super::*;

    /// What a browser sends that had the cookies `before` and then got these headers.
    fn browser(before: &HeaderMap, set: TokenCookies) -> HeaderMap {
        let mut kept: Vec<(String, String)> = Vec::new();
        let old = before.get_all(header::COOKIE).iter().map(|it| it.to_str().unwrap().to_string());
        let set = set.into_response();
        let set = set.headers().get_all(header::SET_COOKIE).iter();
        let set = set.map(|it| it.to_str().unwrap().to_string());
        for cookie in old.chain(set) {
            let (name, value) = cookie.split(';').next().unwrap().split_once('=').unwrap();
            assert!(name.len() + value.len() <= 4_096, "no browser stores it");
            kept.retain(|it| it.0 != name);
            if !cookie.contains("Max-Age=0") {
                kept.push((name.to_string(), value.to_string()));
            }
        }
        let sent: Vec<String> =
            kept.iter().map(|(name, value)| format!("{name}={value}")).collect();
        HeaderMap::from_iter([(header::COOKIE, sent.join("; ").parse().unwrap())])
    }

    #[test]
    fn a_token_of_any_length_survives_its_cookies() {
        let mut sent = HeaderMap::new();
        for length in [1, 3_000, 3_001, TOKEN_BYTES_MAX, 6_000, 20] {
            let token: String = ('a'..='z').cycle().take(length).collect();
            sent = browser(&sent, store(&token, true).unwrap());
            assert_eq!(read(&sent).unwrap(), token, "{length}");
        }
        assert_eq!(read(&browser(&sent, remove())), None);
        assert_eq!(read(&HeaderMap::new()), None);
    }

    #[test]
    fn scripts_and_other_sites_get_no_cookie_and_an_encrypted_page_sends_it_by_https_alone() {
        let first = |is_encrypted| store("a.b.c", is_encrypted).unwrap().0[0].1.clone();
        let encrypted = "__Host-operator_token=a.b.c; HttpOnly; SameSite=Strict; Path=/; Secure";
        assert_eq!(first(true), encrypted);
        assert_eq!(first(false), "operator_token=a.b.c; HttpOnly; SameSite=Strict; Path=/");
    }

    #[test]
    fn what_is_too_long_or_would_end_a_cookie_is_refused() {
        assert!(store(&"a".repeat(TOKEN_BYTES_MAX + 1), false).is_none());
        for token in ["a;b", "a b", "a,b", "a\r\nb", "ß"] {
            assert!(store(token, false).is_none(), "{token}");
        }
    }
}
