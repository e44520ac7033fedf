//! The variables of the control room, beside those of every frontend.

use chassis::config::Secret;
use ops_client::Addresses;
use reqwest::Url;

use crate::traces::TraceLinks;

/// The variables of the control room.
#[derive(Clone, Debug, clap::Args)]
pub struct Settings {
    /// The API of each service: `name=url`, comma-separated. A service with several instances is named once for each,
    /// or by a DNS name with several addresses.
    #[arg(long, env)]
    pub api_urls: Addresses,
    /// The admin port of each service, in the same form.
    #[arg(long, env)]
    pub admin_urls: Addresses,
    /// The port with the probes and the metrics of each service, likewise.
    #[arg(long, env)]
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
}
