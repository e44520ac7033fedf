//! What the control room reads of a token. It trusts none of that: the services check each token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde::Deserialize;

/// The part of a token's claims that is read here.
#[derive(Default, Deserialize)]
pub struct Claims {
    /// The second in which the token ends.
    exp: Option<f64>,
}

impl Claims {
    /// The claims of a JWT, without a check of its signature.
    pub fn parse(token: &str) -> Option<Claims> {
        let claims = BASE64_URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
        serde_json::from_slice(&claims).ok()
    }

    /// How long the token is valid from now on: zero after its end, `None` if it states none.
    pub fn remaining(&self) -> Option<Duration> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let end = Duration::try_from_secs_f64(self.exp?).ok()?;
        Some(end.saturating_sub(now))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A token with these claims, which no key has signed.
    fn unsigned(claims: &Value) -> String {
        format!(
            "{}.{}.sig",
            BASE64_URL_SAFE_NO_PAD.encode(b"{}"),
            BASE64_URL_SAFE_NO_PAD.encode(claims.to_string().as_bytes())
        )
    }

    #[test]
    fn the_end_of_a_token_is_read_from_its_claims() {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let remaining = |claims: Value| Claims::parse(&unsigned(&claims)).unwrap().remaining();
        let left = remaining(json!({"exp": now + 100})).unwrap();
        assert!(left <= Duration::from_secs(100) && left > Duration::from_secs(95), "{left:?}");
        assert_eq!(remaining(json!({"exp": now - 1})), Some(Duration::ZERO));
        assert_eq!(remaining(json!({"sub": "a"})), None);
        assert_eq!(remaining(json!({"exp": -1e300})), None);
        assert!(Claims::parse("opaque").is_none() && Claims::parse("a.b.c").is_none());
    }
}
