//! No component of a secured stack writes a token into its log, whole or in part.

use std::collections::HashSet;
use std::path::Path;

use e2e::client::identity::Identity;
use events::insights;

use super::rotation::on_secured_stack;
use super::*;

/// So many characters of a signature in a row identify a token, and are in no other text.
const PIECE_CHARACTERS: usize = 12;

const TOKEN_LIFETIME: Duration = Duration::from_secs(600);

/// Longer than a clock may differ.
const EXPIRED_FOR: Duration = Duration::from_secs(90);

/// How long a component may take to write a line.
const LOG_DELAY: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes three minutes: make faults"]
async fn no_component_logs_a_token_or_a_piece_of_one_wherever_it_is_presented() -> Result<()> {
    on_secured_stack(async |stack| {
        stack.process_streams()?;
        start_and_seed(stack).await?;
        let tokens = tokens(stack).await?;
        for url in places(stack)? {
            for token in &tokens {
                present(stack, &url, token).await?;
            }
        }
        sleep(LOG_DELAY).await;
        let pieces = tokens.iter().flat_map(|token| pieces(token)).collect();
        let found = logs_with(&stack.directory().join("log"), &pieces)?;
        ensure!(found.is_empty(), "{}", found.join("\n"));
        Ok(())
    })
    .await
}

/// Tokens that are valid somewhere, and such that are valid nowhere. Each has a signature of its own.
async fn tokens(stack: &Stack) -> Result<Vec<String>> {
    // Its issuer has the same name and another key.
    let stranger = secured_stack()?;
    let issuer = stack.token_issuer()?.context("an issuer")?;
    let foreign = stranger.token_issuer()?.context("an issuer")?;
    let customer = Identity::Customer(rich_customer());
    let mut tokens = Vec::new();
    let expired = issuer.sign(&customer.subject(), customer.scopes(), Duration::ZERO)?;
    for identity in [Identity::Operator, Identity::Support, customer] {
        let token = issuer.sign(&identity.subject(), identity.scopes(), TOKEN_LIFETIME)?;
        tokens.push(format!("{token}A"));
        tokens.push(token[..token.len() - 1].to_owned());
        tokens.push(token.replacen('.', "", 1));
        tokens.push(token.replace('.', "_"));
        tokens.push(token);
    }
    tokens.push(foreign.sign("operator", Identity::Operator.scopes(), TOKEN_LIFETIME)?);
    for registry in [stack.registry_token()?, stranger.registry_token()?] {
        let registry = registry.context("a secured registry has a token")?;
        tokens.push(format!("{registry}A"));
        tokens.push(registry);
    }
    sleep(EXPIRED_FOR).await;
    tokens.push(expired);
    Ok(tokens)
}

fn places(stack: &Stack) -> Result<Vec<String>> {
    let registry = stack.registry_url()?;
    let mut urls = vec![
        format!("{registry}/subjects"),
        format!("{registry}/schemas/ids/1"),
        format!("{}/", stack.console_url()?),
        format!("{}/dead-letters", stack.console_url()?),
    ];
    for service in SERVICES {
        urls.push(format!("{}/orders", stack.url(service)?));
        urls.push(format!("{}/items", stack.url(service)?));
        urls.push(format!("{}/dead-letters", stack.admin_url(service)?));
        urls.push(format!("{}/livez", stack.probe_url(service)?));
    }
    let streams = stack.streams_urls()?;
    let streams = streams.into_iter().filter(|(name, _)| name == insights::NAME);
    urls.extend(streams.map(|(_, url)| format!("{url}/sales")));
    Ok(urls)
}

/// Presents a token to read and to write, in the header and as cookies of the control room.
async fn present(stack: &Stack, url: &str, token: &str) -> Result<()> {
    let http = checker::http::client_builder(stack.ca_certificate()?.as_deref())?;
    let http = http.timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none()).build()?;
    for request in [http.get(url), http.post(url).body("{}")] {
        let request = request.header("content-type", "application/json").bearer_auth(token);
        request.send().await.with_context(|| url.to_owned())?;
    }
    let cookie = format!("operator_token={token}");
    http.get(url).header("cookie", cookie).send().await.with_context(|| url.to_owned())?;
    Ok(())
}

/// The pieces of a token's last part. What lies before it repeats in every token of an issuer. A token without parts
/// has the signature of another one here.
fn pieces(token: &str) -> Vec<Vec<u8>> {
    let signature = token.rsplit_once('.').map_or("", |(_, signature)| signature);
    signature.as_bytes().windows(PIECE_CHARACTERS).map(<[u8]>::to_vec).collect()
}

fn logs_with(directory: &Path, pieces: &HashSet<Vec<u8>>) -> Result<Vec<String>> {
    ensure!(pieces.len() > 100, "{} pieces", pieces.len());
    let (mut found, mut logs) = (Vec::new(), 0);
    for file in std::fs::read_dir(directory)? {
        let file = file?.path();
        let log = std::fs::read(&file)?;
        logs += 1;
        let has = |line: &[u8]| line.windows(PIECE_CHARACTERS).any(|piece| pieces.contains(piece));
        for line in log.split(|byte| *byte == b'\n').filter(|line| has(line)) {
            let name = file.file_name().unwrap_or_default().display();
            let line: String = String::from_utf8_lossy(line).chars().take(200).collect();
            found.push(format!("{name}: {line}"));
        }
    }
    ensure!(logs >= SERVICES.len() + 3, "there are only {logs} logs");
    Ok(found)
}
