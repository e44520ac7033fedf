//! The issuer at which operators sign in, a client of its OpenID discovery and of its token endpoint. The code flow is
//! written here, because the crates for it bring second versions of libraries that `deny.toml` refuses.

use std::sync::Arc;
use std::time::{Duration, Instant};

use chassis::config::Secret;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::{Client, RequestBuilder, StatusCode, Url, header, redirect};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use tokio::time::timeout;
use url::form_urlencoded;

use crate::operators::claims::Claims;
use crate::operators::discovery::Discovery;
use crate::operators::encoding;
use crate::operators::pending::SignInAttempt;
use crate::services::describe;
use crate::settings::OidcSettings;

/// One request to the issuer, and how much it may answer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(4);
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How long the discovery document is used. Strangers can begin sign-ins, and these ask the issuer no more often.
const DISCOVERY_LIFETIME: Duration = Duration::from_secs(60);

/// Characters of an error of the issuer that a page shows.
const SHOWN_CHARACTERS_MAX: usize = 300;

/// The scope that asks for an identity token.
const OPENID: &str = "openid";

/// Where operators sign in.
pub struct Issuer {
    url: String,
    client_id: String,
    client_secret: Option<Secret>,
    scopes: String,
    http: Client,
    discovered: Mutex<Option<(Instant, Arc<Discovery>)>>,
}

/// Why no operator was signed in.
#[derive(Debug, thiserror::Error)]
pub enum IssuerError {
    #[error("{host} does not answer: {reason}")]
    Unavailable { host: String, reason: String },
    #[error("The answer of {host} cannot be used: {reason}")]
    Unusable { host: String, reason: String },
    #[error("{host} refuses the sign-in: {reason}")]
    Refused { host: String, reason: String },
}

/// The answer of the token endpoint, by RFC 6749.
#[derive(Deserialize)]
struct TokenAnswer {
    access_token: String,
    token_type: String,
    id_token: Option<String>,
}

impl Issuer {
    /// The issuer that the settings name, if they do.
    ///
    /// # Errors
    /// If the client of the issuer can't be made.
    pub fn from_settings(settings: &OidcSettings) -> anyhow::Result<Option<Issuer>> {
        let (Some(url), Some(client_id)) = (&settings.oidc_issuer, &settings.oidc_client_id) else {
            return Ok(None);
        };
        // As for the services: a redirect or a proxy would lead to a server that no setting names.
        let http = Client::builder().timeout(REQUEST_TIMEOUT).no_proxy();
        let http = http.redirect(redirect::Policy::none()).build()?;
        Ok(Some(Issuer {
            url: url.clone(),
            client_id: client_id.clone(),
            client_secret: settings.oidc_client_secret.clone(),
            scopes: settings.oidc_scopes.clone(),
            http,
            discovered: Mutex::default(),
        }))
    }

    /// The host that an operator reads before the sign-in.
    pub fn host(&self) -> String {
        let url = Url::parse(&self.url).ok();
        let host = url.as_ref().and_then(|url| Some((url.host_str()?, url.port())));
        host.map_or(self.url.clone(), |(host, port)| match port {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        })
    }

    fn asks_for_identity(&self) -> bool {
        self.scopes.split(' ').any(|scope| scope == OPENID)
    }

    /// The page of the issuer that asks an operator to sign in.
    ///
    /// # Errors
    /// If the issuer does not say where it is.
    pub async fn sign_in_url(
        &self,
        state: &str,
        attempt: &SignInAttempt,
    ) -> Result<Url, IssuerError> {
        let mut url = self.discover().await?.authorization_endpoint.clone();
        url.query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.client_id)
            .append_pair("redirect_uri", &attempt.redirect_uri)
            .append_pair("scope", &self.scopes)
            .append_pair("state", state)
            .append_pair("code_challenge", &challenge(&attempt.verifier))
            .append_pair("code_challenge_method", "S256");
        if self.asks_for_identity() {
            url.query_pairs_mut().append_pair("nonce", &attempt.nonce);
        }
        Ok(url)
    }

    /// Refuses an answer that another issuer has sent the browser with (RFC 9207).
    ///
    /// # Errors
    /// If the answer names another issuer.
    pub fn check_sender(&self, sender: Option<&str>) -> Result<(), IssuerError> {
        match sender.is_none_or(|sender| sender == self.url) {
            true => Ok(()),
            false => Err(self.unusable("another issuer has sent it")),
        }
    }

    /// The access token for a code.
    ///
    /// # Errors
    /// If the issuer can't be reached, refuses the code, or answers with something else.
    pub async fn exchange(
        &self,
        code: &str,
        attempt: &SignInAttempt,
    ) -> Result<String, IssuerError> {
        let request = self.token_request(&*self.discover().await?, code, attempt);
        let (status, body) = self.send(request).await?;
        if !status.is_success() {
            return Err(self.refusal(status, &body));
        }
        // The reason of the parser may show a part of a token.
        let answer: TokenAnswer = serde_json::from_slice(&body)
            .map_err(|_| self.unusable("it is not what a token endpoint answers"))?;
        if !answer.token_type.eq_ignore_ascii_case("bearer") {
            return Err(self.unusable("its token is no bearer token"));
        }
        if self.asks_for_identity() {
            self.check_identity(answer.id_token.as_deref(), &attempt.nonce)?;
        }
        Ok(answer.access_token)
    }

    fn token_request(
        &self,
        discovery: &Discovery,
        code: &str,
        attempt: &SignInAttempt,
    ) -> RequestBuilder {
        let mut form = form_urlencoded::Serializer::new(String::new());
        form.append_pair("grant_type", "authorization_code")
            .append_pair("code", code)
            .append_pair("redirect_uri", &attempt.redirect_uri)
            .append_pair("client_id", &self.client_id)
            .append_pair("code_verifier", &attempt.verifier);
        let mut request = self.http.post(discovery.token_endpoint.clone());
        if let Some(secret) = &self.client_secret {
            if discovery.takes_basic {
                request =
                    request.basic_auth(escape(&self.client_id), Some(escape(secret.expose())));
            } else {
                form.append_pair("client_secret", secret.expose());
            }
        }
        request
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json")
            .body(form.finish())
    }

    /// The identity token belongs to this sign-in. It came from the issuer itself over TLS, which takes the place of a
    /// check of its signature (OpenID Connect Core, 3.1.3.7).
    fn check_identity(&self, token: Option<&str>, nonce: &str) -> Result<(), IssuerError> {
        let claims = token.and_then(Claims::parse);
        let claims = claims.ok_or_else(|| self.unusable("it has no identity token"))?;
        let is_alive = claims.remaining().is_some_and(|remaining| !remaining.is_zero());
        for (holds, violation) in [
            (claims.iss == self.url, "its identity token is of another issuer"),
            (claims.aud.contains(&self.client_id), "its identity token is for another client"),
            (claims.nonce == nonce, "its identity token belongs to another sign-in"),
            (is_alive, "its identity token has ended"),
        ] {
            if !holds {
                return Err(self.unusable(violation));
            }
        }
        Ok(())
    }

    /// The discovery document.
    async fn discover(&self) -> Result<Arc<Discovery>, IssuerError> {
        // One request at a time: those that wait use its answer, and do not wait for many that fail.
        let locked = timeout(REQUEST_TIMEOUT, self.discovered.lock()).await;
        let mut discovered = locked.map_err(|_| IssuerError::Unavailable {
            host: self.host(),
            reason: "it does not answer in time".to_string(),
        })?;
        if let Some((at, discovery)) = &*discovered
            && at.elapsed() < DISCOVERY_LIFETIME
        {
            return Ok(discovery.clone());
        }
        let base = self.url.trim_end_matches('/');
        let (status, body) =
            self.send(self.http.get(format!("{base}/.well-known/openid-configuration"))).await?;
        if !status.is_success() {
            return Err(self.unusable(format!("its discovery document is answered with {status}")));
        }
        let discovery = Discovery::parse(&body, &self.url).map_err(|why| self.unusable(why))?;
        let discovery = Arc::new(discovery);
        *discovered = Some((Instant::now(), discovery.clone()));
        Ok(discovery)
    }

    async fn send(&self, request: RequestBuilder) -> Result<(StatusCode, Vec<u8>), IssuerError> {
        let unavailable = |error: reqwest::Error| IssuerError::Unavailable {
            host: self.host(),
            reason: describe(&error),
        };
        let mut response = request.send().await.map_err(unavailable)?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
            body.extend_from_slice(&chunk);
            if body.len() > ANSWER_BYTES_MAX {
                return Err(self.unusable("it is too large"));
            }
        }
        Ok((response.status(), body))
    }

    fn unusable(&self, reason: impl ToString) -> IssuerError {
        IssuerError::Unusable { host: self.host(), reason: reason.to_string() }
    }

    /// A refusal with the issuer's own words.
    pub fn refused(&self, error: &str, description: Option<&str>) -> IssuerError {
        let reason = match description {
            Some(description) => format!("{error}: {description}"),
            None => error.to_string(),
        };
        let shown = reason.chars().filter(|c| !c.is_control()).take(SHOWN_CHARACTERS_MAX);
        IssuerError::Refused { host: self.host(), reason: shown.collect() }
    }

    fn refusal(&self, status: StatusCode, body: &[u8]) -> IssuerError {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let error = body["error"].as_str().map_or(format!("it answers {status}"), str::to_string);
        self.refused(&error, body["error_description"].as_str())
    }
}

/// The challenge of RFC 7636 with the method S256.
fn challenge(verifier: &str) -> String {
    encoding::encode(&Sha256::digest(verifier))
}

/// RFC 6749, 2.3.1: the name and the secret of a client are encoded before they stand in the header.
fn escape(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}
