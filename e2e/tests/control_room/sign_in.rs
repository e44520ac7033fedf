//! The sign-in of a secured stack in a real browser: a pasted token, and the code flow at an issuer of another site.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::client::http_client::Client;
use e2e::stack_description::with_console;
use e2e::workload::seed;
use launcher::{Stack, StackDescription, eventually};
use tokio::net::TcpListener;

use crate::control_room::authorization_server::{
    AuthorizationServer, CLIENT_ID, CLIENT_SECRET, Grant,
};
use crate::control_room::browser::Browser;
use crate::control_room::take_screenshot;
use crate::fixture::{TIMEOUT, stack_permit};

/// Longer than the test takes.
const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

/// Long enough for a page to be loaded before it ends.
const SHORT_LIFETIME: Duration = Duration::from_secs(12);

const SCOPES: &str = "operator support:read";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half a minute and needs a browser: make browser"]
async fn operators_of_a_secured_stack_sign_in_and_its_audit_names_them() -> Result<()> {
    let _permit = stack_permit().await?;
    let secure = StackDescription { secure: true, ..with_console() };
    let stack = Stack::ephemeral(&secure)?;
    let server = start_stack(&stack).await?;
    let url = stack.console_url()?;
    let browser = Browser::start(1360, 900, false).await?;
    paste_tokens(&stack, &browser, &url).await?;
    sign_in_at_the_issuer(&stack, &server, &browser, &url).await?;
    sign_in_with_a_large_token(&server, &browser, &url).await?;
    refuse_what_was_not_begun_here(&server, &browser, &url).await?;
    end_with_the_token(&server, &browser, &url).await?;
    browser.close().await
}

/// The stack, and an issuer whose client its control room is.
async fn start_stack(stack: &Stack) -> Result<AuthorizationServer> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let issuer_url = format!("https://localhost:{}", listener.local_addr()?.port());
    for (name, value) in [
        ("OIDC_ISSUER", &*issuer_url),
        ("OIDC_CLIENT_ID", CLIENT_ID),
        ("OIDC_CLIENT_SECRET", CLIENT_SECRET),
        ("OIDC_SCOPES", "openid operator support:read"),
    ] {
        stack.set_environment("console", name, Some(value))?;
    }
    stack.up().await?;
    seed::run(&Client::for_stack(stack)?).await?;
    let issuer = stack.token_issuer()?.context("a secured stack has an issuer")?;
    let callback = format!("{}/sign-in/callback", stack.console_url()?);
    let authority = stack.ca_certificate()?.context("a secured stack has an authority")?;
    let certificate = authority.with_file_name("console.pem");
    AuthorizationServer::start(listener, &certificate, issuer, callback)
}

/// The log of order names who had the items rebuilt.
async fn rebuild_as(stack: &Stack, browser: &Browser, url: &str, name: &str) -> Result<()> {
    browser.open(&format!("{url}/repair")).await?;
    browser.click("section[aria-label=Rebuild] button").await?;
    browser.wait_for("The items are rebuilt", TIMEOUT).await?;
    let log = stack.log_file("order")?;
    eventually("the audit to name the operator", TIMEOUT, async || {
        let log = std::fs::read_to_string(&log)?;
        let mut acts = log.lines().filter(|line| line.contains("an operator acted"));
        let is_named = |line: &str| line.contains(name) && line.contains("POST /items/rebuild");
        ensure!(acts.any(is_named), "{name}");
        Ok(())
    })
    .await
}

async fn ensure_signed_out(browser: &Browser, url: &str) -> Result<()> {
    browser.open(&format!("{url}/repair")).await?;
    let text = browser.text().await?;
    ensure!(text.contains("Sign in at localhost") && !text.contains("Republish"), "{text}");
    Ok(())
}

/// A token that is pasted: a wrong one, one of no operator, and a good one.
async fn paste_tokens(stack: &Stack, browser: &Browser, url: &str) -> Result<()> {
    let issuer = stack.token_issuer()?.context("a secured stack has an issuer")?;
    ensure_signed_out(browser, url).await?;
    take_screenshot(browser, "sign-in").await?;
    let good = issuer.sign("vera", SCOPES, TOKEN_LIFETIME)?;
    let of_customer = issuer.sign("vera", "orders:read", TOKEN_LIFETIME)?;
    let forged = format!("{}AA", &good[..good.len() - 2]);
    for (token, refusal) in [
        ("no token", "This is no access token"),
        (&*forged, "The services refuse this token"),
        (&of_customer, "The services refuse this token"),
    ] {
        paste(browser, token).await?;
        browser.wait_for(refusal, TIMEOUT).await?;
        ensure_signed_out(browser, url).await?;
    }
    browser.complaints().await?;
    paste(browser, &good).await?;
    browser.wait_for("live", TIMEOUT).await?;
    rebuild_as(stack, browser, url, "vera").await?;
    let cookies = browser.run("return document.cookie").await?;
    ensure!(!cookies.to_string().contains("operator_token"), "a script reads {cookies}");
    let complaints = browser.complaints().await?;
    ensure!(complaints.is_empty(), "{complaints:#?}");
    browser.click(".sign-out button").await?;
    browser.wait_for("Paste an access token", TIMEOUT).await?;
    ensure_signed_out(browser, url).await
}

async fn paste(browser: &Browser, token: &str) -> Result<()> {
    browser.click("details summary").await?;
    browser.fill("#token", token).await?;
    browser.click("form.sign-in button").await
}

/// The issuer shows its page, and the browser comes back signed in or with the reason why not.
async fn sign_in_at_the_issuer(
    stack: &Stack,
    server: &AuthorizationServer,
    browser: &Browser,
    url: &str,
) -> Result<()> {
    let grant =
        |name, scopes: &str| Grant { name, scopes: scopes.to_string(), lifetime: TOKEN_LIFETIME };
    server.grant(grant("olga", SCOPES));
    browser.click("a.button.primary").await?;
    browser.wait_for("Who are you?", TIMEOUT).await?;
    browser.click("#deny").await?;
    browser.wait_for("refuses the sign-in: access_denied: <b>Not you</b>", TIMEOUT).await?;
    browser.complaints().await?;
    browser.click("a.button.primary").await?;
    browser.wait_for("Who are you?", TIMEOUT).await?;
    browser.click("#agree").await?;
    browser.wait_for("live", TIMEOUT).await?;
    rebuild_as(stack, browser, url, "olga").await?;
    let complaints = browser.complaints().await?;
    ensure!(complaints.is_empty(), "{complaints:#?}");
    browser.click(".sign-out button").await?;
    browser.wait_for("Sign in at localhost", TIMEOUT).await?;
    server.grant(grant("carl", "orders:read"));
    agree(browser).await?;
    browser.wait_for("The services refuse this token", TIMEOUT).await?;
    ensure_signed_out(browser, url).await
}

async fn agree(browser: &Browser) -> Result<()> {
    browser.click("a.button.primary").await?;
    browser.wait_for("Who are you?", TIMEOUT).await?;
    browser.click("#agree").await
}

/// A token of many claims is larger than what fits into one cookie.
async fn sign_in_with_a_large_token(
    server: &AuthorizationServer,
    browser: &Browser,
    url: &str,
) -> Result<()> {
    let scopes = (0..300).map(|nth| format!(" scope-{nth:03}:read")).collect::<String>();
    let scopes = format!("{SCOPES}{scopes}");
    server.grant(Grant { name: "olga", scopes, lifetime: TOKEN_LIFETIME });
    agree(browser).await?;
    browser.wait_for("live", TIMEOUT).await?;
    browser.open(&format!("{url}/repair")).await?;
    browser.wait_for("Rebuild the items", TIMEOUT).await?;
    browser.click(".sign-out button").await?;
    browser.wait_for("Sign in at localhost", TIMEOUT).await?;
    ensure_signed_out(browser, url).await
}

/// Another site sends the browser with a code of its own, or with an answer that was used.
async fn refuse_what_was_not_begun_here(
    server: &AuthorizationServer,
    browser: &Browser,
    url: &str,
) -> Result<()> {
    server.grant(Grant { name: "eve", scopes: SCOPES.to_string(), lifetime: TOKEN_LIFETIME });
    browser.click("a.button.primary").await?;
    browser.wait_for("Who are you?", TIMEOUT).await?;
    let back = browser.run("return document.getElementById('agree').href").await?;
    let back = back.as_str().context("an address")?.to_string();
    let forged = back.replace("state=", "state=a");
    for (what, address) in [("a forged state", &forged), ("the state that was forged", &back)] {
        // The first one ends the sign-in of this browser.
        browser.open(address).await?;
        browser.wait_for("This sign-in is not known here", TIMEOUT).await.context(what)?;
        ensure_signed_out(browser, url).await.context(what)?;
    }
    let injected = format!("{url}/sign-in/callback?state=a&error=Call+this+number");
    browser.open(&injected).await?;
    let text = browser.text().await?;
    ensure!(text.contains("not known here") && !text.contains("Call this number"), "{text}");
    Ok(())
}

/// A page that is open says that the token has ended, and so does the next one.
async fn end_with_the_token(
    server: &AuthorizationServer,
    browser: &Browser,
    url: &str,
) -> Result<()> {
    server.grant(Grant { name: "olga", scopes: SCOPES.to_string(), lifetime: SHORT_LIFETIME });
    agree(browser).await?;
    browser.wait_for("live", TIMEOUT).await?;
    ensure!(!browser.text().await?.contains("Your sign-in has ended"), "it has not ended yet");
    browser.wait_for("Your sign-in has ended", TIMEOUT).await?;
    browser.wait_for("no connection", TIMEOUT).await?;
    take_screenshot(browser, "sign-in-ended").await?;
    browser.open(url).await?;
    browser.wait_for("You are signed out. The access token has expired.", TIMEOUT).await?;
    ensure_signed_out(browser, url).await
}
