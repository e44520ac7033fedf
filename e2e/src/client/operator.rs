//! The services as an operator reaches them: those of a stack, or those of another deployment that variables name.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use launcher::Stack;
use ops_client::{Addresses, OpsClient, ReplayedPage, Services};
use reqwest::Url;

use crate::client::identity::Identity;
use crate::client::tokens::Tokens;

/// Where the admin ports of another deployment are, its APIs, and the operator's access token there.
const ADMIN_URLS: &str = "ADMIN_URLS";
const API_URLS: &str = "API_URLS";
const TOKEN: &str = "TOKEN";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// A service ends a request after 15 s. Its own answer tells why.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// An operator, who asks the services at their admin ports.
pub struct Operator {
    services: Services,
    credentials: Credentials,
}

enum Credentials {
    /// The stack is not secured.
    None,
    Signed(Tokens),
    Given(String),
}

impl Operator {
    /// The operator of a stack.
    pub fn for_stack(stack: &Stack) -> Result<Operator> {
        let addresses = |url: fn(&Stack, &str) -> Result<String>| -> Result<Addresses> {
            let mut all = Vec::new();
            for service in &stack.description().services {
                for name in stack.instances_of(service)? {
                    all.push(format!("{service}={}", url(stack, &name)?));
                }
            }
            parse(&all.join(","))
        };
        let http = checker::http::client_builder(stack.ca_certificate()?.as_deref())?;
        let http = http.connect_timeout(CONNECT_TIMEOUT).build()?;
        let issuer = stack.token_issuer()?;
        Ok(Operator {
            services: Services::new(http, addresses(Stack::admin_url)?, addresses(Stack::url)?),
            credentials: issuer
                .map_or(Credentials::None, |issuer| Credentials::Signed(Tokens::new(issuer))),
        })
    }

    /// The operator of the deployment whose admin ports `ADMIN_URLS` names, if it names any. It prints where they are.
    pub fn from_environment() -> Result<Option<Operator>> {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let Some(admin) = variable(ADMIN_URLS) else { return Ok(None) };
        let admin = parse(&admin).context(ADMIN_URLS)?;
        let api = variable(API_URLS).map(|urls| parse(&urls).context(API_URLS)).transpose()?;
        let (api, token) = (api.unwrap_or_default(), variable(TOKEN));
        for url in urls(&admin).chain(urls(&api)).filter(|_| token.is_some()) {
            let place = place(url);
            ensure!(is_private(url), "{TOKEN} is not sent over plain http to {place}: use https");
        }
        let places = Vec::from_iter(urls(&admin).map(place).collect::<BTreeSet<_>>());
        eprintln!("the services that {ADMIN_URLS} names: {}", places.join(", "));
        // It trusts what the system trusts, or the file that SSL_CERT_FILE names.
        let http = checker::http::client_builder(None)?.connect_timeout(CONNECT_TIMEOUT).build()?;
        Ok(Some(Operator {
            services: Services::new(http, admin, api),
            credentials: token.map_or(Credentials::None, Credentials::Given),
        }))
    }

    /// The names of the services.
    pub fn services(&self) -> &[String] {
        &self.services.names
    }

    /// A client with an operator's token. A stack's token expires soon, so a caller that waits gets a new client.
    pub fn ask(&self) -> Result<OpsClient<'_>> {
        self.ask_as(Identity::Operator)
    }

    /// Asks as a client with other rights, where the stack issues its tokens.
    pub fn ask_as(&self, identity: Identity) -> Result<OpsClient<'_>> {
        let token = match &self.credentials {
            Credentials::None => None,
            Credentials::Signed(tokens) => Some(tokens.token(identity)?),
            Credentials::Given(token) => Some(token.clone()),
        };
        Ok(self.services.as_caller(token).waiting(REQUEST_TIMEOUT))
    }

    /// Replays the dead letters of a service that wait.
    pub async fn replay_all(&self, service: &str) -> Result<ReplayedPage> {
        let (mut all, mut after) = (ReplayedPage::default(), Some(0));
        while let Some(last) = after {
            let page = self.ask()?.replay_after(service, last).await?;
            all.replayed += page.replayed;
            all.still_unprocessable += page.still_unprocessable;
            after = page.next;
        }
        Ok(all)
    }
}

fn parse(addresses: &str) -> Result<Addresses> {
    addresses.parse().map_err(anyhow::Error::msg)
}

fn urls(addresses: &Addresses) -> impl Iterator<Item = &Url> {
    addresses.0.iter().flat_map(|(_, urls)| urls)
}

/// The host and the port of a URL.
fn place(url: &Url) -> String {
    let port = url.port_or_known_default().unwrap_or_default();
    format!("{}:{port}", url.host_str().unwrap_or_default())
}

/// Whether the network cannot read a request to this URL: it is encrypted, or stays on this machine.
fn is_private(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    url.scheme() == "https"
        || host == "localhost"
        || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_goes_over_https_or_stays_on_this_machine() {
        let is_private = |url: &str| is_private(&url.parse().unwrap());
        for url in ["https://a:1", "http://localhost:9011", "http://127.0.0.2", "http://[::1]:1"] {
            assert!(is_private(url), "{url}");
        }
        for url in ["http://a:1", "http://10.0.0.1", "http://localhost.example.com", "http://[::2]"]
        {
            assert!(!is_private(url), "{url}");
        }
    }
}
