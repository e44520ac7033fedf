//! The sign-in of a secured stack in a real browser: a pasted token, and oauth2-proxy at an issuer of another site.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::client::http_client::Client;
use e2e::stack_description::with_console;
use e2e::workload::seed;
use launcher::{Stack, StackDescription, eventually};
use reqwest::StatusCode;
use reqwest::header::{ACCEPT, COOKIE, LOCATION, ORIGIN};
use tokio::time::{sleep, timeout};

use crate::control_room::authorization_server::{AuthorizationServer, Grant};
use crate::control_room::browser::Browser;
use crate::control_room::oauth2_proxy::{OAuth2Proxy, RENEWED_AFTER, http_client};
use crate::control_room::take_screenshot;
use crate::fixture::{TIMEOUT, stack_permit};

/// Longer than the test takes.
const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

/// Long enough for a page to be loaded before it ends, and longer than [`RENEWED_AFTER`].
const SHORT_LIFETIME: Duration = Duration::from_secs(12);

/// An event stream says something within this time.
const STREAM_SILENCE_MAX: Duration = Duration::from_secs(6);

const SCOPES: &str = "operator support:read";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half a minute and needs a browser: make browser"]
async fn operators_of_a_secured_stack_sign_in_and_its_audit_names_them() -> Result<()> {
    let _permit = stack_permit().await?;
    let secure = StackDescription { secure: true, ..with_console() };
    let stack = Stack::ephemeral(&secure)?;
    stack.set_environment("console", "OAUTH2_PROXY_PREFIX", Some("/oauth2"))?;
    stack.up().await?;
    seed::run(&Client::for_stack(&stack)?).await?;
    let browser = Browser::start(1360, 900, false).await?;
    paste_tokens(&stack, &browser, &stack.console_url()?).await?;
    let issuer = stack.token_issuer()?.context("a secured stack has an issuer")?;
    let authority = stack.ca_certificate()?.context("a secured stack has an authority")?;
    let server =
        AuthorizationServer::start(&authority.with_file_name("console.pem"), issuer).await?;
    let proxy = OAuth2Proxy::start(&stack, server.url()).await?;
    sign_in_at_the_issuer(&stack, &server, &browser, &proxy.url).await?;
    refuse_who_is_no_operator(&server, &browser, &proxy.url).await?;
    renew_the_token(&stack, &server, &browser, &proxy.url).await?;
    end_with_the_token(&server, &browser, &proxy.url).await?;
    trust_no_header(&stack).await?;
    browser.close().await
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
    ensure!(text.contains("Paste an access token") && !text.contains("Republish"), "{text}");
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
        ("no token", "would not accept this access token"),
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

/// From the page of oauth2-proxy to that of the issuer.
async fn go_to_issuer(browser: &Browser, url: &str) -> Result<()> {
    browser.open(url).await?;
    browser.wait_for("Sign in with", TIMEOUT).await?;
    take_screenshot(browser, "sign-in-proxy").await?;
    browser.click("button[type=submit]").await?;
    browser.wait_for("Who are you?", TIMEOUT).await
}

async fn sign_in(browser: &Browser, url: &str) -> Result<()> {
    go_to_issuer(browser, url).await?;
    browser.click("#agree").await
}

async fn sign_out(browser: &Browser, url: &str) -> Result<()> {
    browser.click(".sign-out button").await?;
    browser.wait_for("Sign in with", TIMEOUT).await?;
    browser.open(&format!("{url}/repair")).await?;
    let text = browser.text().await?;
    ensure!(text.contains("Sign in with") && !text.contains("Republish"), "{text}");
    Ok(())
}

/// An operator signs in, with a token that is larger than one cookie, acts, and signs out.
async fn sign_in_at_the_issuer(
    stack: &Stack,
    server: &AuthorizationServer,
    browser: &Browser,
    url: &str,
) -> Result<()> {
    let scopes = (0..300).map(|nth| format!(" scope-{nth:03}:read")).collect::<String>();
    let scopes = format!("{SCOPES}{scopes}");
    server.grant(Grant { name: "olga", scopes, lifetime: TOKEN_LIFETIME, is_renewed: false });
    go_to_issuer(browser, url).await?;
    browser.click("#deny").await?;
    browser.wait_for("Forbidden", TIMEOUT).await?;
    sign_in(browser, url).await?;
    browser.wait_for("live", TIMEOUT).await?;
    // The page of oauth2-proxy has the status 403.
    browser.complaints().await?;
    rebuild_as(stack, browser, url, "olga").await?;
    let complaints = browser.complaints().await?;
    ensure!(complaints.is_empty(), "{complaints:#?}");
    let cookies = browser.cookies().await?;
    stream_at_once(&cookies, url).await?;
    refuse_foreign_posts(&cookies, url).await?;
    sign_out(browser, url).await
}

/// What the control room sends arrives while its answer goes on.
async fn stream_at_once(cookies: &str, url: &str) -> Result<()> {
    let began = Instant::now();
    let stream = http_client()?
        .get(format!("{url}/overview/events"))
        .header(ACCEPT, "text/event-stream")
        .header(COOKIE, cookies);
    let mut stream = stream.send().await?.error_for_status()?;
    let mut arrivals = Vec::new();
    while arrivals.len() < 3 {
        let chunk = timeout(STREAM_SILENCE_MAX, stream.chunk()).await.context("silence")??;
        chunk.context("the stream has ended")?;
        arrivals.push(began.elapsed());
    }
    ensure!(arrivals[0] < Duration::from_secs(2), "the first arrived after {:?}", arrivals[0]);
    Ok(())
}

/// A page of another site posts with the cookies of an operator.
async fn refuse_foreign_posts(cookies: &str, url: &str) -> Result<()> {
    for (name, value, expected) in [
        (ORIGIN.as_str(), "https://evil.example.com", StatusCode::FORBIDDEN),
        ("sec-fetch-site", "cross-site", StatusCode::FORBIDDEN),
        ("sec-fetch-site", "same-origin", StatusCode::SEE_OTHER),
    ] {
        let post = http_client()?.post(format!("{url}/sign-out"));
        let answer = post.header(COOKIE, cookies).header(name, value).send().await?;
        ensure!(answer.status() == expected, "{name}: {value}: {}", answer.status());
    }
    Ok(())
}

/// The issuer knows a customer too, whose token the services refuse.
async fn refuse_who_is_no_operator(
    server: &AuthorizationServer,
    browser: &Browser,
    url: &str,
) -> Result<()> {
    let scopes = "orders:read".to_string();
    server.grant(Grant { name: "carl", scopes, lifetime: TOKEN_LIFETIME, is_renewed: false });
    sign_in(browser, url).await?;
    browser.wait_for("The services refuse this token", TIMEOUT).await?;
    browser.open(&format!("{url}/repair")).await?;
    let text = browser.text().await?;
    ensure!(!text.contains("Republish"), "{text}");
    take_screenshot(browser, "sign-in-refused").await?;
    browser.click("a.button.primary").await?;
    browser.wait_for("Sign in with", TIMEOUT).await
}

/// A page stays live for longer than a token, while the issuer renews it.
async fn renew_the_token(
    stack: &Stack,
    server: &AuthorizationServer,
    browser: &Browser,
    url: &str,
) -> Result<()> {
    let scopes = SCOPES.to_string();
    server.grant(Grant { name: "vera", scopes, lifetime: SHORT_LIFETIME, is_renewed: true });
    sign_in(browser, url).await?;
    browser.wait_for("live", TIMEOUT).await?;
    sleep(SHORT_LIFETIME + RENEWED_AFTER).await;
    browser.wait_for("live", TIMEOUT).await?;
    ensure!(!browser.text().await?.contains("Your sign-in has expired"), "it was renewed");
    rebuild_as(stack, browser, url, "vera").await?;
    ensure!(server.renewals() > 0, "nothing was renewed");
    browser.complaints().await?;
    sign_out(browser, url).await
}

/// The issuer renews nothing: a page that is open says that the token has ended, and the next one asks to sign in.
async fn end_with_the_token(
    server: &AuthorizationServer,
    browser: &Browser,
    url: &str,
) -> Result<()> {
    let scopes = SCOPES.to_string();
    server.grant(Grant { name: "olga", scopes, lifetime: SHORT_LIFETIME, is_renewed: false });
    sign_in(browser, url).await?;
    browser.wait_for("live", TIMEOUT).await?;
    ensure!(!browser.text().await?.contains("Your sign-in has expired"), "it has not ended yet");
    browser.wait_for("Your sign-in has expired", TIMEOUT).await?;
    browser.wait_for("no connection", TIMEOUT).await?;
    take_screenshot(browser, "sign-in-ended").await?;
    browser.open(url).await?;
    browser.wait_for("Sign in with", TIMEOUT).await
}

/// An intruder reaches the control room without oauth2-proxy and sends the headers that oauth2-proxy would add.
async fn trust_no_header(stack: &Stack) -> Result<()> {
    let issuer = stack.token_issuer()?.context("a secured stack has an issuer")?;
    let good = issuer.sign("vera", SCOPES, TOKEN_LIFETIME)?;
    let forged = format!("{}AA", &good[..good.len() - 2]);
    let of_customer = issuer.sign("vera", "orders:read", TOKEN_LIFETIME)?;
    for (name, value, is_let_in) in [
        ("x-forwarded-user", "vera", false),
        ("x-forwarded-email", "vera", false),
        ("x-forwarded-access-token", "vera", false),
        ("x-forwarded-access-token", &*forged, false),
        ("x-forwarded-access-token", &*of_customer, false),
        ("x-forwarded-access-token", &*good, true),
    ] {
        let page = format!("{}/repair", stack.console_url()?);
        let answer = http_client()?.get(page).header(name, value).send().await?;
        let to_sign_in = answer.headers().get(LOCATION).is_some_and(|it| it == "/sign-in");
        ensure!(answer.status().is_success() == is_let_in, "{name}: {}", answer.status());
        ensure!(to_sign_in != is_let_in, "{name}: {:?}", answer.headers());
    }
    Ok(())
}
