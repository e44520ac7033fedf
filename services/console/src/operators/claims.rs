//! What the control room reads of a token. It trusts none of that: the services check each token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Deserialize;

use crate::operators::encoding;

/// The part of a token's claims that is read here.
#[derive(Default, Deserialize)]
pub struct Claims {
    #[serde(default)]
    pub iss: String,
    #[serde(default)]
    pub aud: Audience,
    #[serde(default)]
    pub nonce: String,
    /// The second in which the token ends.
    exp: Option<f64>,
}

/// One name, or a list of them.
#[derive(Deserialize)]
#[serde(untagged)]
pub enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Default for Audience {
    fn default() -> Audience {
        Audience::Many(Vec::new())
    }
}

impl Audience {
    pub fn contains(&self, name: &str) -> bool {
        match self {
            Audience::One(one) => one == name,
            Audience::Many(many) => many.iter().any(|it| it == name),
        }
    }
}

impl Claims {
    /// The claims of a JWT, without a check of its signature.
    pub fn parse(token: &str) -> Option<Claims> {
        let claims = encoding::decode(token.split('.').nth(1)?)?;
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
pub mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A token with these claims, which no key has signed.
    pub fn unsigned(claims: &Value) -> String {
        format!(
            "{}.{}.sig",
            encoding::encode(b"{}"),
            encoding::encode(claims.to_string().as_bytes())
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

    #[test]
    fn an_audience_is_one_name_or_many() {
        for (aud, expected) in [(json!("a"), true), (json!(["b", "a"]), true), (json!("ab"), false)]
        {
            let claims = Claims::parse(&unsigned(&json!({"aud": aud}))).unwrap();
            assert_eq!(claims.aud.contains("a"), expected, "{aud}");
        }
        assert!(!Claims::parse(&unsigned(&json!({}))).unwrap().aud.contains("a"));
    }
}
