//! The secrets of a secured stack are renewed while it works.

use std::pin::Pin;

use e2e::client::identity::Identity;
use e2e::stack_description::with_console;
use launcher::{StackDescription, TokenIssuer};
use openssl::ssl::{SslConnector, SslMethod, SslVerifyMode};
use rdkafka::ClientConfig;
use sqlx::{Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use super::*;
use crate::callers::status;
use crate::wires::reaches_kafka;

/// After a rotation nothing old is in use by then: the registry reads its certificate every 30 s, and everything else
/// within ten.
const TAKEOVER: Duration = Duration::from_secs(60);

/// What a client of one service presents.
struct Login {
    service: &'static str,
    database: String,
    kafka: ClientConfig,
}

fn logins(stack: &Stack) -> Result<Vec<Login>> {
    let login = |service: &&'static str| {
        let database = stack.service_database_url(service)?;
        Ok(Login { service, database, kafka: stack.kafka_client_as(service)? })
    };
    SERVICES.iter().map(login).collect()
}

/// The addresses of all servers that have a certificate.
fn servers(stack: &Stack) -> Result<Vec<String>> {
    let address = |url: &str| -> Result<String> {
        let url = reqwest::Url::parse(url)?;
        let (host, port) = (url.host_str().context("a host")?, url.port().context("a port")?);
        Ok(format!("{host}:{port}"))
    };
    let mut servers = vec![address(&stack.registry_url()?)?, stack.kafka_bootstrap()?];
    for service in SERVICES {
        servers.push(address(&stack.url(service)?)?);
        servers.push(address(&stack.admin_url(service)?)?);
        let kafka = stack.kafka_client_as(service)?;
        servers.push(kafka.get("bootstrap.servers").context("a broker")?.to_string());
    }
    Ok(servers)
}

/// The certificate that a server presents.
pub async fn presented(address: &str) -> Result<Vec<u8>> {
    presented_on(TcpStream::connect(address).await?).await
}

/// The certificate that a database presents, which begins TLS by a request of its own.
async fn presented_by_database(url: &str) -> Result<Vec<u8>> {
    const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];
    let port = reqwest::Url::parse(url)?.port().context("a port")?;
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.write_all(&SSL_REQUEST).await?;
    ensure!(stream.read_u8().await? == b'S', "the database serves no TLS");
    presented_on(stream).await
}

async fn presented_on(stream: TcpStream) -> Result<Vec<u8>> {
    let mut connector = SslConnector::builder(SslMethod::tls_client())?;
    connector.set_verify(SslVerifyMode::NONE);
    let ssl = connector.build().configure()?.verify_hostname(false).into_ssl("127.0.0.1")?;
    let mut stream = SslStream::new(ssl, stream)?;
    Pin::new(&mut stream).connect().await?;
    Ok(stream.ssl().peer_certificate().context("a certificate")?.to_der()?)
}

/// All certificates that are presented, each with its server.
async fn all_presented(stack: &Stack, logins: &[Login]) -> Result<Vec<(String, Vec<u8>)>> {
    let mut certificates = Vec::new();
    for server in servers(stack)? {
        let certificate = presented(&server).await.with_context(|| server.clone())?;
        certificates.push((server, certificate));
    }
    for Login { service, database, .. } in logins {
        let certificate = presented_by_database(database).await;
        certificates.push((format!("the database of {service}"), certificate?));
    }
    Ok(certificates)
}

/// Waits until no server presents what it presented before.
async fn wait_for_certificates(
    stack: &Stack,
    logins: &[Login],
    old: &[(String, Vec<u8>)],
) -> Result<()> {
    eventually("new certificates", TAKEOVER, async || {
        let new = all_presented(stack, logins).await?;
        let kept = old.iter().filter(|it| new.contains(it)).map(|(server, _)| server.as_str());
        let kept: Vec<&str> = kept.collect();
        ensure!(kept.is_empty(), "{kept:?} present what they presented before");
        Ok(())
    })
    .await
}

/// The new passwords are accepted, and the old ones are not.
async fn check_logins(stack: &Stack, old: &[Login]) -> Result<()> {
    for (old, new) in old.iter().zip(logins(stack)?) {
        let service = old.service;
        ensure!(PgConnection::connect(&old.database).await.is_err(), "the database of {service}");
        ensure!(reaches_kafka(old.kafka.clone()).await.is_err(), "Kafka, for {service}");
        PgConnection::connect(&new.database).await?.close().await?;
        reaches_kafka(new.kafka).await?;
    }
    Ok(())
}

pub async fn on_secured_stack(test: impl AsyncFnOnce(&Stack) -> Result<()>) -> Result<()> {
    without_fixture(async || {
        let secure = StackDescription { secure: true, ..with_console() };
        let stack = Stack::ephemeral(&secure)?;
        without_unexpected_exits(&stack, test(&stack)).await
    })
    .await
}

/// The answer to a customer whose token this issuer has signed.
async fn status_for(stack: &Stack, issuer: &TokenIssuer) -> Result<u16> {
    let customer = rich_customer();
    let identity = Identity::Customer(customer);
    // The key of a valid token is kept, so the token is short.
    let token = issuer.sign(&identity.subject(), identity.scopes(), Duration::from_secs(20))?;
    let url = format!("{}/orders?customer_id={customer}", stack.url("order")?);
    status(stack, &url, Some(&token)).await
}

/// A thief of the old key can still sign with it. No service accepts such a token.
async fn wait_until_refused(stack: &Stack, old: &TokenIssuer) -> Result<()> {
    let status = async || status_for(stack, old).await;
    wait_for("the old key of the tokens to be refused", TAKEOVER, status, |it| *it == 401).await?;
    let new = stack.token_issuer()?.context("an issuer")?;
    ensure!(status_for(stack, &new).await? == 200, "the new key is accepted");
    Ok(())
}

/// F41. Without a restart. Afterwards no old password and no old key of tokens is accepted, and no old certificate is
/// presented.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes four minutes: make faults"]
async fn passwords_certificates_and_token_keys_are_renewed_under_load_and_no_request_fails()
-> Result<()> {
    on_secured_stack(async |stack| {
        let client = start_and_seed(stack).await?;
        let old = logins(stack)?;
        let certificates = all_presented(stack, &old).await?;
        let copied = stack.token_issuer()?.context("an issuer")?;
        ensure!(status_for(stack, &copied).await? == 200, "the old key is accepted until then");
        under_load_until_done(&client, 100, async {
            sleep(Duration::from_secs(5)).await;
            stack.rotate(false).await?;
            wait_for_certificates(stack, &old, &certificates).await?;
            wait_until_refused(stack, &copied).await
        })
        .await?;
        check_logins(stack, &old).await?;
        assert_verified(&client).await
    })
    .await
}

/// F41. The authority that signs is renewed in two steps. The clients of the load know both authorities.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes four minutes: make faults"]
async fn an_authority_is_renewed_under_load_and_no_request_fails() -> Result<()> {
    on_secured_stack(async |stack| {
        start_and_seed(stack).await?;
        let old = logins(stack)?;
        let certificates = all_presented(stack, &old).await?;
        let superuser = stack.database_url("order")?;
        let load = async {
            sleep(Duration::from_secs(30)).await;
            let client = Client::for_stack(stack)?;
            let renewed = wait_for_certificates(stack, &old, &certificates);
            under_load_without_errors(&client, 20, 100, renewed).await
        };
        tokio::try_join!(stack.rotate(true), load)?;
        ensure!(PgConnection::connect(&superuser).await.is_err(), "the old superuser's password");
        check_logins(stack, &old).await?;
        // It trusts the new authority alone.
        assert_verified(&Client::for_stack(stack)?).await
    })
    .await
}
