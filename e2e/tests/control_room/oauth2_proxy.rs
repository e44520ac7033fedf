//! oauth2-proxy with the arguments of the production overlay, but for addresses, files and the time of a renewal.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::monitoring::server::program;
use e2e::stack_description::checkout;
use launcher::{HOST, Stack, eventually, free_port};
use reqwest::Client;
use reqwest::redirect::Policy;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::control_room::authorization_server::CLIENT_SECRET;
use crate::fixture::TIMEOUT;

/// How old a token is when the next request renews it.
pub const RENEWED_AFTER: Duration = Duration::from_secs(5);

/// It runs until it is dropped.
pub struct OAuth2Proxy {
    pub url: String,
    _process: Child,
}

impl OAuth2Proxy {
    /// Starts it in front of the control room of a stack.
    pub async fn start(stack: &Stack, issuer_url: &str) -> Result<OAuth2Proxy> {
        let authority = stack.ca_certificate()?.context("a secured stack has an authority")?;
        let certificate = authority.with_file_name("console.pem").display().to_string();
        let [client_secret, cookie_secret] = [
            ("client-secret", CLIENT_SECRET),
            ("cookie-secret", "0123456789abcdef0123456789abcdef"),
        ]
        .map(|(name, secret)| (stack.directory().join(name), secret));
        let mut arguments = arguments()?;
        let mut set = |name: &str, value: &str| -> Result<()> {
            let start = format!("--{name}=");
            let argument = arguments.iter_mut().find(|it| it.starts_with(&start));
            *argument.with_context(|| format!("no {name}"))? = format!("{start}{value}");
            Ok(())
        };
        for (name, (file, secret)) in
            [("client-secret-file", client_secret), ("cookie-secret-file", cookie_secret)]
        {
            fs::write(&file, secret)?;
            set(name, &file.display().to_string())?;
        }
        let address = format!("{HOST}:{}", free_port()?);
        set("oidc-issuer-url", issuer_url)?;
        set("upstream", &stack.console_url()?)?;
        set("https-address", &address)?;
        set("tls-cert-file", &certificate)?;
        set("tls-key-file", &certificate)?;
        set("cookie-refresh", &format!("{}s", RENEWED_AFTER.as_secs()))?;
        let log = fs::File::create(stack.directory().join("oauth2-proxy.log"))?;
        let process = Command::new(program("oauth2-proxy")?)
            .args(arguments)
            .env_clear()
            .env("SSL_CERT_FILE", &authority)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()?;
        let proxy = OAuth2Proxy { url: format!("https://{address}"), _process: process };
        let http = http_client()?;
        eventually("oauth2-proxy", TIMEOUT, async || {
            Ok(http.get(format!("{}/ready", proxy.url)).send().await?.error_for_status()?)
        })
        .await?;
        Ok(proxy)
    }
}

/// A client that follows no redirect, and that accepts the certificates of the stack as the browser does.
pub fn http_client() -> Result<Client> {
    let client = Client::builder().no_proxy().redirect(Policy::none());
    Ok(client.tls_danger_accept_invalid_certs(true).build()?)
}

/// The arguments of the container in the overlay.
fn arguments() -> Result<Vec<String>> {
    let text = fs::read_to_string(checkout().join("k8s/overlays/production/sign-in.yaml"))?;
    let patches: Vec<Value> = serde_saphyr::from_multiple(&text)?;
    let containers = patches[0]["spec"]["template"]["spec"]["containers"].as_array();
    let mut containers = containers.context("no containers")?.iter();
    let sign_in = containers.find(|it| it["name"] == "sign-in").context("no container")?;
    let arguments = sign_in["args"].as_array().context("no arguments")?;
    let arguments: Vec<String> =
        arguments.iter().filter_map(|it| it.as_str().map(str::to_string)).collect();
    ensure!(!arguments.is_empty(), "no arguments");
    Ok(arguments)
}
