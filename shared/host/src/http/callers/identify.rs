//! How a port learns who calls it.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};

use crate::config::env::BadConfiguration;
use crate::config::{KeyLocation, TokenConfig};
use crate::http::callers::caller::Caller;
use crate::http::callers::keys::Keys;
use crate::http::callers::token::{TokenError, TokenVerifier};
use crate::http::problem::Problem;

/// Where a port gets the callers of its requests from: an extension of each request.
#[derive(Clone)]
pub struct Callers(Source);

#[derive(Clone)]
enum Source {
    /// The service knows no callers.
    Unknown,
    Tokens(Arc<TokenVerifier>),
    /// One caller or a request without a token, in tests.
    Fixed(Option<Caller>),
}

impl Callers {
    pub(crate) fn unknown() -> Callers {
        Callers(Source::Unknown)
    }

    /// Every request has the same caller, or no token.
    pub(crate) fn fixed(caller: Option<Caller>) -> Callers {
        Callers(Source::Fixed(caller))
    }

    /// The callers whom the tokens of the configured issuer name.
    ///
    /// # Errors
    /// If the file of its keys holds none.
    pub(crate) fn new(config: &TokenConfig) -> anyhow::Result<Callers> {
        let Some((issuer, location)) = config.issuer()? else { return Ok(Callers::unknown()) };
        let keys = Keys::new(location.clone()).map_err(|error| match location {
            KeyLocation::File(path) => anyhow::Error::new(BadConfiguration::new(format!(
                "TOKEN_KEYS is `{path}`, which cannot be used: {error:#}."
            ))),
            _ => error,
        })?;
        let verifier = TokenVerifier::new(issuer, &config.token_audience, keys);
        Ok(Callers(Source::Tokens(Arc::new(verifier))))
    }

    pub(super) fn are_unknown(&self) -> bool {
        matches!(self.0, Source::Unknown)
    }

    pub(super) async fn identify(&self, headers: &HeaderMap) -> Result<Caller, TokenError> {
        match &self.0 {
            Source::Unknown => Ok(Caller::unrestricted()),
            Source::Fixed(caller) => caller.clone().ok_or(TokenError::Missing),
            Source::Tokens(verifier) => verifier.verify(bearer_token(headers)?).await,
        }
    }
}

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

pub(super) fn caller_unknown() -> Problem {
    tracing::error!("a route lacks the layer that identifies callers, so every caller is refused");
    Problem::internal()
}

/// The token of the header `Authorization`, which may be there once.
fn bearer_token(headers: &HeaderMap) -> Result<&str, TokenError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(TokenError::Missing)?;
    if values.next().is_some() {
        return Err(TokenError::Malformed);
    }
    let (scheme, token) =
        value.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    // Another scheme is no token either.
    let is_bearer = scheme.eq_ignore_ascii_case("bearer") && !token.is_empty();
    if is_bearer { Ok(token) } else { Err(TokenError::Missing) }
}
