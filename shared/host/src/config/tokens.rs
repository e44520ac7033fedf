//! Whose tokens name the callers of a service.

use crate::config::address;
use crate::config::env::BadConfiguration;

/// How the tokens of callers are checked.
#[derive(Debug, Clone, clap::Args)]
pub struct TokenConfig {
    /// The issuer (`iss`) of the tokens that name callers, exactly as the tokens contain it. Unset: the service does
    /// not authenticate callers, and every client that reaches a port may use everything there.
    #[arg(long, env)]
    pub token_issuer: Option<String>,
    /// The audience (`aud`) that a token must name.
    #[arg(long, env, default_value = "holdfast")]
    pub token_audience: String,
    /// The issuer's public keys as a JSON Web Key Set: a file, or an http(s) URL; no proxy variable applies. Default:
    /// the URL that the issuer names by OpenID discovery.
    #[arg(long, env, value_parser = parse_keys)]
    pub token_keys: Option<KeyLocation>,
}

/// Where the keys of the issuer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyLocation {
    /// A file.
    File(String),
    /// The URL of a key set.
    Url(String),
    /// The base URL of an issuer whose discovery document names the URL of its key set.
    Discovery(String),
}

fn parse_keys(text: &str) -> Result<KeyLocation, String> {
    if text.contains("://") {
        return address::parse_base_url(text).map(KeyLocation::Url);
    }
    address::readable_file(text).map(KeyLocation::File)
}

impl TokenConfig {
    /// The issuer and where its keys are, if the service knows its callers.
    ///
    /// # Errors
    /// If the issuer is no URL, and no variable says where its keys are.
    pub fn issuer(&self) -> Result<Option<(&str, KeyLocation)>, BadConfiguration> {
        let Some(issuer) = self.token_issuer.as_deref() else { return Ok(None) };
        if let Some(keys) = &self.token_keys {
            return Ok(Some((issuer, keys.clone())));
        }
        let base = address::parse_base_url(issuer).map_err(|why| {
            BadConfiguration::new(format!(
                "TOKEN_ISSUER is `{issuer}`, which is not an address for OpenID discovery: {why}. Set TOKEN_KEYS."
            ))
        })?;
        Ok(Some((issuer, KeyLocation::Discovery(base))))
    }

    pub(super) fn check(&self) -> Result<(), BadConfiguration> {
        BadConfiguration::require(
            self.token_keys.is_none() || self.token_issuer.is_some(),
            "TOKEN_ISSUER must be set, because TOKEN_KEYS is set: without it no token is checked.",
        )?;
        self.issuer().map(drop)
    }
}
