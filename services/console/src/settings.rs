//! The variables of the control room, beside those of every frontend.

use std::fmt::{self, Display};

use chassis::config::Secret;
use reqwest::Url;

use crate::traces::TraceLinks;

/// The variables of the control room.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// The API of each service: `name=url`, comma-separated. A service with several instances is named once for each,
    /// or by a DNS name with several addresses.
    #[arg(long, env, value_parser = parse_addresses)]
    pub api_urls: Addresses,
    /// The admin port of each service, in the same form.
    #[arg(long, env, value_parser = parse_addresses)]
    pub admin_urls: Addresses,
    /// The port with the probes and the metrics of each service, likewise.
    #[arg(long, env, value_parser = parse_addresses)]
    pub probe_urls: Addresses,
    /// The API of the stream processor, whose sums the overview draws. These charts are absent while it is unset or
    /// does not answer.
    #[arg(long, env)]
    pub insights_url: Option<Url>,
    /// The host names, comma-separated, by which browsers reach the control room, beside `localhost` and addresses.
    #[arg(long, env, default_value = "")]
    pub hosts: String,
    /// With 1, each page needs a token with the scope `operator`, which the services check.
    #[arg(long, env, default_value = "0", action = clap::ArgAction::Set, value_parser = parse_switch)]
    pub sign_in: bool,
    /// The path prefix of oauth2-proxy's own pages, such as `/oauth2`, if it stands in front of the control room and passes
    /// on the access token (`--pass-access-token`). Unset: operators paste a token.
    #[arg(long, env, value_parser = parse_prefix)]
    pub oauth2_proxy_prefix: Option<String>,
    #[command(flatten)]
    pub traces: TraceLinks,
    /// With 1, a page can place orders. For demos only.
    #[arg(long, env, default_value = "0", action = clap::ArgAction::Set, value_parser = parse_switch)]
    pub demo: bool,
    /// The control server of the launcher, by which that page kills and starts components of a native stack.
    #[arg(long, env)]
    pub launcher_url: Option<Url>,
    /// The token of that server.
    #[arg(long, env, hide_env_values = true)]
    pub launcher_token: Option<Secret>,
}

fn parse_prefix(text: &str) -> Result<String, String> {
    match text.starts_with('/') && !text.ends_with('/') && !text.starts_with("//") {
        true => Ok(text.to_string()),
        false => Err("it is no path like /oauth2".to_string()),
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
    use super::*;

    #[test]
    fn the_prefix_of_the_proxy_is_a_path() {
        assert_eq!(parse_prefix("/oauth2"), Ok("/oauth2".to_string()));
        for other in ["", "/", "oauth2", "/oauth2/", "//evil.example.com", "https://a"] {
            assert!(parse_prefix(other).is_err(), "{other}");
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
