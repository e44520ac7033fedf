//! The wires of a secured stack: each refuses a client that uses no encryption, cannot prove its name,
//! or is shown a server that it does not trust.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use launcher::directories::programs_directory;
use launcher::{Stack, eventually};
use rdkafka::ClientConfig;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer};
use reqwest::StatusCode;
use serde_json::json;
use sqlx::{Connection, PgConnection};

use crate::fixture::*;

/// How long a client of Kafka tries to connect. The right one needs a few milliseconds.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread")]
async fn no_wire_of_a_secured_stack_serves_a_client_without_a_name() -> Result<()> {
    let _permit = stack_permit().await?;
    let stack = secured_stack()?;
    // Its certificates are those of another authority.
    let stranger = secured_stack()?;
    stack.up_infrastructure().await?;
    kafka_knows_its_clients(&stack, &stranger).await?;
    databases_know_their_clients(&stack, &stranger).await?;
    the_registry_is_written_with_a_token(&stack, &stranger).await
}

/// A rollout with a wrong password stops at its first instance.
#[tokio::test(flavor = "multi_thread")]
async fn an_instance_whose_password_kafka_refuses_is_not_ready_and_says_so() -> Result<()> {
    const INSTANCE: &str = "order-2";
    let _permit = stack_permit().await?;
    let stack = secured_stack()?;
    stack.up_infrastructure().await?;
    stack.apply_contracts(&programs_directory()?).await?;
    stack.migrate("order").await?;
    stack.start("order").await?;
    stack.set_environment(INSTANCE, "KAFKA_SASL_PASSWORD", Some("wrong"))?;
    let refused = eventually("a refusal", TIMEOUT, async || {
        let ready = probe(&stack, INSTANCE, "readyz").await?;
        ensure!(ready.contains("Kafka refuses the password"), "{ready}");
        let metrics = probe(&stack, INSTANCE, "metrics").await?;
        ensure!(metrics.contains(REFUSED) && !metrics.contains(&format!("{REFUSED} 0\n")));
        Ok(())
    });
    tokio::pin!(refused);
    tokio::select! {
        refused = &mut refused => refused?,
        // It may be ready before Kafka answers for the first time.
        _ = stack.start(INSTANCE) => refused.await?,
    }
    let log = std::fs::read_to_string(stack.log_file(INSTANCE)?)?;
    ensure!(log.matches("this service was denied access").count() == 1, "{log}");
    ensure!(probe(&stack, INSTANCE, "livez").await? == "ok\n", "a restart mends no password");
    ensure!(probe(&stack, "order", "readyz").await? == "ok\n", "the other one serves");
    let metrics = probe(&stack, "order", "metrics").await?;
    ensure!(metrics.contains(&format!("{REFUSED} 0\n")), "{metrics}");
    Ok(())
}

/// The counter of refusals, as Prometheus reads it.
const REFUSED: &str = "access_refused_total{system=\"kafka\",kind=\"authentication\"}";

async fn probe(stack: &Stack, instance: &str, path: &str) -> Result<String> {
    let url = format!("{}/{path}", stack.probe_url(instance)?);
    Ok(reqwest::get(url).await?.text().await?)
}

async fn kafka_knows_its_clients(stack: &Stack, stranger: &Stack) -> Result<()> {
    let (platform, service) = (stack.kafka_client()?, stack.kafka_client_as("order")?);
    reaches_kafka(platform.clone()).await.context("the platform")?;
    let with = |client: &ClientConfig, settings: &[&str], value: &str| {
        let mut client = client.clone();
        for setting in settings {
            client.set(*setting, value);
        }
        client
    };
    let foreign = stranger.kafka_client()?;
    let foreign = |setting: &str| foreign.get(setting).unwrap_or_default().to_string();
    let foreign_ca = foreign("ssl.ca.location");
    let foreign_certificate = foreign("ssl.certificate.location");
    let certificate = ["ssl.certificate.location", "ssl.key.location"];
    let mut nameless = platform.clone();
    for setting in certificate {
        nameless.remove(setting);
    }
    let protocol = ["security.protocol"];
    let refused = [
        ("plaintext at the platform's listener", with(&platform, &protocol, "plaintext")),
        ("plaintext at a service's listener", with(&service, &protocol, "plaintext")),
        ("no certificate", nameless),
        ("a certificate of another authority", with(&platform, &certificate, &foreign_certificate)),
        (
            "a server of an authority that the client does not trust",
            with(&platform, &["ssl.ca.location"], &foreign_ca),
        ),
        ("a password that is wrong", with(&service, &["sasl.password"], "wrong")),
        ("TLS without a password", with(&service, &protocol, "ssl")),
    ];
    let tried = refused.map(async |(what, client)| {
        ensure!(reaches_kafka(client).await.is_err(), "Kafka serves {what}");
        Ok(())
    });
    try_join_all(tried).await.map(drop)
}

pub async fn reaches_kafka(mut client: ClientConfig) -> Result<()> {
    let fetch_metadata = move || -> Result<()> {
        let client: BaseConsumer = client.set_log_level(RDKafkaLogLevel::Emerg).create()?;
        client.fetch_metadata(None, CONNECT_TIMEOUT)?;
        Ok(())
    };
    tokio::task::spawn_blocking(fetch_metadata).await?
}

async fn databases_know_their_clients(stack: &Stack, stranger: &Stack) -> Result<()> {
    let url = stack.service_database_url("order")?;
    PgConnection::connect(&url).await?.close().await?;
    let (own, foreign) = (stack.ca_certificate()?, stranger.ca_certificate()?);
    let (own, foreign) = (own.context("a CA")?, foreign.context("a CA")?);
    let password = url.split(['@', ':']).nth(2).context("a URL with a password")?;
    let refused = [
        ("no encryption", url.replace("verify-full", "disable")),
        ("a password that is wrong", url.replace(password, "wrong")),
        ("another role's password", url.replace("postgres://order:", "postgres://postgres:")),
        ("a server that the client does not trust", {
            url.replace(&*own.to_string_lossy(), &foreign.to_string_lossy())
        }),
        ("a server of another name", url.replace("@127.0.0.1", "@127.0.0.2")),
    ];
    for (what, url) in refused {
        ensure!(PgConnection::connect(&url).await.is_err(), "the database serves {what}");
    }
    Ok(())
}

async fn the_registry_is_written_with_a_token(stack: &Stack, stranger: &Stack) -> Result<()> {
    let url = format!("{}/subjects", stack.registry_url()?);
    let http = checker::http::client_builder(stack.ca_certificate()?.as_deref())?.build()?;
    let read = http.get(&url).send().await?.status();
    ensure!(read == StatusCode::OK, "everybody may read: {read}");
    let write = async |token: Option<String>| -> Result<StatusCode> {
        let body = json!({ "schema": r#"{"type": "string"}"# });
        let mut request = http.post(format!("{url}/tried-value/versions")).json(&body);
        if let Some(token) = token {
            request = request.bearer_auth(token);
        }
        Ok(request.send().await?.status())
    };
    let token = stack.registry_token()?.context("a secured stack has a token")?;
    let (signed, signature) = token.rsplit_once('.').context("a token has a signature")?;
    let reversed: String = signature.chars().rev().collect();
    let tokens = [
        None,
        Some(String::new()),
        Some(format!("{signed}.")),
        Some(format!("{signed}.{reversed}")),
        stranger.registry_token()?,
    ];
    for token in tokens {
        let status = write(token.clone()).await?;
        ensure!(status == StatusCode::UNAUTHORIZED, "{token:?} is answered {status}");
    }
    let status = write(Some(token)).await?;
    ensure!(status == StatusCode::OK, "the right token is answered {status}");
    let plain = url.replace("https://", "http://");
    ensure!(http.get(plain).send().await.is_err(), "the registry serves plain HTTP");
    Ok(())
}
