//! The variables of the control room, beside those of every frontend.

use std::fmt::{self, Display};

use chassis::config::Secret;
use chassis::config::env::BadConfiguration;
use reqwest::Url;

use crate::traces::TraceLinks;

/// The variables of the control room.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// The API of each service: `name=url`, comma-separated. A service with several instances is named once for each,
    /// or by a DNS name with several addresses.
    #[arg(long, env, value_parser = parse_addresses)]
    pub api_urls: Addresses,
    /// The admin port of each service, likewise.
    #[arg(long, env, value_parser = parse_addresses)]
    pub admin_urls: Addresses,
    /// The port with the probes and the metrics of each service, likewise.
    #[arg(long, env, value_parser = parse_addresses)]
    pub probe_urls: Addresses,
    /// The API of the stream processor, whose sums the overview draws. Unset, or while it does not answer, there are no
    /// such charts.
    #[arg(long, env)]
    pub insights_url: Option<Url>,
    /// The host names, comma-separated, by which browsers reach the control room, beside `localhost` and addresses.
    #[arg(long, env, default_value = "")]
    pub hosts: String,
    /// With 1, each page needs a token with the scope `operator`, which the services check.
    #[arg(long, env, default_value = "0", action = clap::ArgAction::Set, value_parser = parse_switch)]
    pub sign_in: bool,
    /// Where operators sign in.
    #[command(flatten)]
    pub oidc: OidcSettings,
    #[command(flatten)]
    pub traces: TraceLinks,
    /// With 1, there is a page that places orders. For a demo alone.
    #[arg(long, env, default_value = "0", action = clap::ArgAction::Set, value_parser = parse_switch)]
    pub demo: bool,
    /// The control server of the launcher, by which that page kills and starts components of a native stack.
    #[arg(long, env)]
    pub launcher_url: Option<Url>,
    /// The token of that server.
    #[arg(long, env, hide_env_values = true)]
    pub launcher_token: Option<Secret>,
}

/// The issuer at which operators sign in.
#[derive(Clone, Debug, clap::Args)]
pub struct OidcSettings {
    /// The OpenID issuer at which operators sign in, exactly as its discovery document names it. Unset: they paste a
    /// token.
    #[arg(long, env, value_parser = parse_issuer)]
    pub oidc_issuer: Option<String>,
    /// The name of the control room at the issuer.
    #[arg(long, env)]
    pub oidc_client_id: Option<String>,
    /// Its secret there, if it has one. PKCE protects the sign-in of a client without one.
    #[arg(long, env, hide_env_values = true)]
    pub oidc_client_secret: Option<Secret>,
    /// The scopes that a sign-in asks for, with blanks between them. With `openid` among them, the identity token is
    /// checked as well.
    #[arg(long, env, default_value = "operator support:read")]
    pub oidc_scopes: String,
}

impl Settings {
    /// Refuses settings that contradict each other.
    ///
    /// # Errors
    /// One sentence, which names the variable.
    pub fn check(&self, is_encrypted: bool) -> Result<(), BadConfiguration> {
        let refusal = match (&self.oidc.oidc_issuer, &self.oidc.oidc_client_id) {
            (None, None) if self.oidc.oidc_client_secret.is_none() => return Ok(()),
            (None, _) => "OIDC_ISSUER must be set, since its client is.",
            (Some(_), None) => "OIDC_CLIENT_ID must be set, since OIDC_ISSUER is.",
            (Some(_), _) if !self.sign_in => {
                "SIGN_IN must be 1, since OIDC_ISSUER is set: no page would ask for a token."
            }
            (Some(issuer), _) if is_encrypted && !issuer.starts_with("https://") => {
                "OIDC_ISSUER must begin with https://, as the pages do."
            }
            _ => return Ok(()),
        };
        Err(BadConfiguration::new(refusal))
    }
}

fn parse_issuer(text: &str) -> Result<String, String> {
    let url: Url = text.parse().map_err(|error| format!("it is no URL: {error}"))?;
    let has_host = ["http", "https"].contains(&url.scheme()) && url.host().is_some();
    match has_host && url.query().is_none() && url.fragment().is_none() {
        true => Ok(text.to_string()),
        false => Err("it is no URL like https://issuer.example.com/realms/shop".to_string()),
    }
}

/// The addresses of one port of the services, by service, in the given sequence.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(pub Vec<(String, Vec<Url>)>);

impl Addresses {
    /// The addresses of a service.
    pub fn get(&self, service: &str) -> &[Url] {
        let found = self.0.iter().find(|(name, _)| name == service);
        found.map_or(&[], |(_, urls)| urls)
    }

    /// The names of the services.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|(name, _)| &**name)
    }
}

impl Display for Addresses {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.0.iter().flat_map(|(name, urls)| urls.iter().map(move |url| (name, url)));
        for (nth, (name, url)) in all.enumerate() {
            write!(out, "{}{name}={url}", if nth == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

fn parse_addresses(text: &str) -> Result<Addresses, String> {
    let mut addresses = Addresses::default();
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (name, url) = part.split_once('=').ok_or("each part is `name=url`")?;
        let url: Url = url.trim().parse().map_err(|error| format!("the URL of {name}: {error}"))?;
        if !["http", "https"].contains(&url.scheme()) || url.host().is_none() {
            return Err(format!("the URL of {name} does not begin with http:// or https://"));
        }
        let (name, known) = (name.trim().to_string(), &mut addresses.0);
        match known.iter_mut().find(|(known, _)| *known == name) {
            Some((_, urls)) => urls.push(url),
            None => known.push((name, vec![url])),
        }
    }
    match addresses.0.is_empty() {
        true => Err("it names no service".to_string()),
        false => Ok(addresses),
    }
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err("it is neither 1 nor 0".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use chassis::config::env;

    use super::*;

    #[derive(clap::Parser)]
    struct Variables {
        #[command(flatten)]
        settings: Settings,
    }

    fn check(variables: &[(&str, &str)], is_encrypted: bool) -> Result<(), String> {
        let urls = ["API_URLS", "ADMIN_URLS", "PROBE_URLS"].map(|name| (name, "order=http://a:1"));
        let value = |name: &str| {
            let given = urls.iter().chain(variables).find(|it| it.0 == name);
            given.map(|it| it.1.to_string())
        };
        let read: Variables = env::read_from(value).map_err(|error| error.to_string())?;
        read.settings.check(is_encrypted).map_err(|error| error.to_string())
    }

    #[test]
    fn an_issuer_needs_a_client_pages_that_ask_for_its_tokens_and_their_encryption() {
        let (on, client) = (("SIGN_IN", "1"), ("OIDC_CLIENT_ID", "control-room"));
        let issuer = ("OIDC_ISSUER", "https://issuer.example.com/realms/shop");
        let clear = ("OIDC_ISSUER", "http://localhost:8080");
        assert_eq!(check(&[], true), Ok(()));
        assert_eq!(check(&[on, issuer, client], true), Ok(()));
        assert_eq!(check(&[on, clear, client], false), Ok(()));
        for (variables, named) in [
            (&[on, issuer][..], "OIDC_CLIENT_ID must"),
            (&[on, client], "OIDC_ISSUER must be set"),
            (&[on, ("OIDC_CLIENT_SECRET", "s")], "OIDC_ISSUER must be set"),
            (&[issuer, client], "SIGN_IN must"),
            (&[on, clear, client], "OIDC_ISSUER must begin with https"),
            (&[on, ("OIDC_ISSUER", "issuer.example.com"), client], "OIDC_ISSUER is"),
            (&[on, ("OIDC_ISSUER", "https://a/?b"), client], "OIDC_ISSUER is"),
        ] {
            let refused = check(variables, true).unwrap_err();
            assert!(refused.contains(named), "{refused}");
        }
    }

    #[test]
    fn a_service_that_is_named_twice_has_two_instances() {
        let text = "order=http://a:1,stock=http://b:2, order=http://c:3";
        let addresses = parse_addresses(text).unwrap();
        assert_eq!(Vec::from_iter(addresses.names()), ["order", "stock"]);
        assert_eq!(addresses.get("order").len(), 2);
        assert_eq!(addresses.get("payment").len(), 0);
        assert_eq!(parse_addresses(&addresses.to_string()).unwrap(), addresses);
        for refused in ["", "order", "order=a:1", "order=ftp://a", "http://a"] {
            assert!(parse_addresses(refused).is_err(), "{refused}");
        }
    }
}
