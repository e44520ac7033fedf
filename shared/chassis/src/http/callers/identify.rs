//! How a port learns who calls it.

use std::sync::Arc;

use axum::http::{HeaderMap, header};

use crate::config::env::BadConfiguration;
use crate::config::{KeyLocation, TokenConfig};
use crate::http::callers::caller::Caller;
use crate::http::callers::keys::Keys;
use crate::http::callers::token::{TokenError, TokenVerifier};

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
    /// A service without a token issuer.
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

/// The token of the header `Authorization`, which may be there once.
fn bearer_token(headers: &HeaderMap) -> Result<&str, TokenError> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let value = values.next().ok_or(TokenError::Missing)?;
    if values.next().is_some() {
        return Err(TokenError::Malformed);
    }
    let (scheme, token) =
        value.to_str().ok().and_then(|text| text.split_once(' ')).unwrap_or_default();
    match scheme.eq_ignore_ascii_case("bearer") && !token.is_empty() {
        true => Ok(token),
        // Another scheme is no token either.
        false => Err(TokenError::Missing),
    }
}
