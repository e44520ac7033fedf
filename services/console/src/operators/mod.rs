//! The operators who use the pages. On a secured stack an operator signs in at oauth2-proxy, which stands in front and
//! passes on the access token, or pastes one. Each request to a service carries the token, so that the audit of the
//! services names the person. The services check the token, whichever way it came; the control room only asks one of
//! them whether it is good.

mod claims; // what a token states
pub mod token_cookies; // where the token is kept

use std::collections::HashMap;
use std::convert::Infallible;
use std::time::{Duration, Instant};

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use ops_client::{OpsClient, ServiceError, Services};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use crate::operators::claims::Claims;

/// How long a token that a service accepted counts as good here. The services check it at each request all the same.
const VERIFIED_FOR: Duration = Duration::from_secs(60);

/// Tokens that are remembered, at most.
const VERIFIED_MAX: usize = 1_000;

/// The header of oauth2-proxy with the access token of its session.
const PROXY_TOKEN: &str = "x-forwarded-access-token";

/// The operator of a request.
#[derive(Clone, Debug, Default)]
pub struct Operator(Option<String>);

impl Operator {
    /// The access token, where the stack is secured.
    pub fn token(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// The services, as this operator asks them.
    pub fn ask<'a>(&self, services: &'a Services) -> OpsClient<'a> {
        services.as_caller(self.0.clone())
    }

    /// The operator whose token the proxy passes on, or the cookies of a pasted token hold.
    pub fn from_headers(headers: &HeaderMap) -> Operator {
        let passed_on = headers.get(PROXY_TOKEN).and_then(|token| token.to_str().ok());
        Operator(passed_on.map(str::to_string).or_else(|| token_cookies::read(headers)))
    }

    /// An operator with a token that was pasted.
    pub fn with_token(token: &str) -> Operator {
        Operator(Some(token.to_string()))
    }

    /// How long the token is valid, if it says so.
    pub fn remaining(&self) -> Option<Duration> {
        self.token().and_then(Claims::parse)?.remaining()
    }
}

impl<S: Send + Sync> FromRequestParts<S> for Operator {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Operator, Infallible> {
        Ok(Operator::from_headers(&parts.headers))
    }
}

/// The digests of tokens that a service accepted lately.
#[derive(Default)]
pub struct VerifiedTokens(Mutex<HashMap<[u8; 32], Instant>>);

impl VerifiedTokens {
    fn age(&self, token: &str) -> Option<Duration> {
        self.0.lock().get(&digest(token)).map(Instant::elapsed)
    }

    fn store(&self, token: &str) {
        let mut verified = self.0.lock();
        if verified.len() >= VERIFIED_MAX {
            verified.retain(|_, at| at.elapsed() < VERIFIED_FOR);
        }
        if verified.len() < VERIFIED_MAX {
            verified.insert(digest(token), Instant::now());
        }
    }

    pub fn forget(&self, token: &str) {
        self.0.lock().remove(&digest(token));
    }
}

fn digest(token: &str) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// What became of the question whether a token is good.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Accepted,
    /// The request has no token.
    Missing,
    /// With the reason.
    Refused(String),
}

/// Whether oauth2-proxy has added the token.
pub fn comes_from_proxy(headers: &HeaderMap) -> bool {
    headers.contains_key(PROXY_TOKEN)
}

/// Asks the services, one after the other, until one accepts or refuses the token.
///
/// # Errors
/// If none answers.
pub async fn verify(
    services: &Services,
    verified: &VerifiedTokens,
    operator: &Operator,
) -> Result<Verdict, ServiceError> {
    let Some(token) = operator.token() else { return Ok(Verdict::Missing) };
    if operator.remaining().is_some_and(|remaining| remaining.is_zero()) {
        return Ok(Verdict::Refused("The access token has expired.".to_string()));
    }
    let age = verified.age(token);
    if age.is_some_and(|age| age < VERIFIED_FOR) {
        return Ok(Verdict::Accepted);
    }
    let mut unreachable = None;
    for service in &services.names {
        match operator.ask(services).consumer(service).await {
            Ok(_) => {
                verified.store(token);
                return Ok(Verdict::Accepted);
            }
            Err(ServiceError::Refused { status, detail, .. })
                if [StatusCode::UNAUTHORIZED, StatusCode::FORBIDDEN].contains(&status) =>
            {
                verified.forget(token);
                return Ok(Verdict::Refused(detail));
            }
            Err(error) => unreachable = Some(error),
        }
    }
    match (age, unreachable) {
        // An outage of every service is what an operator wants to see.
        (Some(_), _) => Ok(Verdict::Accepted),
        (None, Some(error)) => Err(error),
        (None, None) => {
            Ok(Verdict::Refused("There is no service that could check it.".to_string()))
        }
    }
}
