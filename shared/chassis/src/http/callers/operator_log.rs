//! The log of the admin port: one line for each act of an operator.

use axum::body::{Body, to_bytes};
use axum::extract::Request;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::http::callers::caller::Caller;
use crate::http::problem::Problem;

/// A larger body is no request of the admin port; the limits of the port refuse it sooner.
const BODY_BYTES_MAX: usize = 64 * 1024;

/// Characters of a request's body in its line.
const LOGGED_CHARACTERS_MAX: usize = 2_000;

/// Logs an act with its actor: what was asked, of what, and how it ended.
pub(super) async fn record(request: Request, next: Next) -> Response {
    if request.method().is_safe() {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    let Ok(body) = to_bytes(body, BODY_BYTES_MAX).await else {
        return Problem::malformed("The body could not be read.").into_response();
    };
    let caller = parts.extensions.get::<Caller>().cloned();
    let actor = caller.as_ref().and_then(Caller::subject).unwrap_or("unknown").to_owned();
    let act = format!("{} {}", parts.method, parts.uri.path());
    let text: String = String::from_utf8_lossy(&body).chars().take(LOGGED_CHARACTERS_MAX).collect();
    let response = next.run(Request::from_parts(parts, Body::from(body))).await;
    let status = response.status().as_u16();
    // With escapes, so that no text of a request begins a line of its own.
    tracing::info!(actor = ?actor, act = ?act, request = ?text, status, "an operator acted");
    response
}
