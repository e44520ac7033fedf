//! The host that a request names. If a request names two hosts, a proxy could check one and the service serve the other
//! (RFC 9112, 3.2).

use axum::extract::Request;
use axum::http::{HeaderMap, Uri, header};

use crate::http::problem::Problem;

/// Refuses a request that names two hosts.
pub(super) fn check_host(request: &Request) -> Result<(), Problem> {
    match names_one_host(request.uri(), request.headers()) {
        true => Ok(()),
        false => Err(Problem::malformed("The request names two hosts.")),
    }
}

/// Whether there is one header `Host` at most, and the target of the request names no other host.
fn names_one_host(target: &Uri, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let host = hosts.next();
    let is_same = target.authority().zip(host).is_none_or(|(target, host)| {
        host.as_bytes().eq_ignore_ascii_case(target.as_str().as_bytes())
    });
    is_same && hosts.next().is_none()
}
