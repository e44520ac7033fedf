//! The extractor of a request's caller.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;

use crate::http::callers::caller::Caller;
use crate::http::callers::identify::Callers;
use crate::http::problem::Problem;

/// The caller of a request.
///
/// # Errors
/// 500 if the request passed no layer that knows its caller: such a route would be open to every client.
pub(crate) fn caller_of(parts: &Parts) -> Result<Caller, Problem> {
    if let Some(caller) = parts.extensions.get::<Caller>() {
        return Ok(caller.clone());
    }
    match parts.extensions.get::<Callers>() {
        Some(callers) if callers.are_unknown() => Ok(Caller::unrestricted()),
        _ => Err(caller_unknown()),
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        caller_of(parts)
    }
}

/// 500: no layer has told who calls, so every caller is refused.
pub(super) fn caller_unknown() -> Problem {
    tracing::error!("a route lacks the layer that identifies callers, so every caller is refused");
    Problem::internal()
}
