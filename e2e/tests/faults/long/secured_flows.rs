//! Kafka Connect, the stream processor and the reporting database on a secured stack.

use std::path::Path;

use checker::kafka::create_consumer;
use checker::read_records;
use e2e::admin::connectors::{self, Carrier};
use e2e::admin::{erasure, reporting};
use e2e::client::identity::Identity;
use e2e::scenarios::{reporting as rows, streams};
use rdkafka::ClientConfig;
use rdkafka::consumer::Consumer;
use reqwest::Identity as Certificate;
use sqlx::{Connection, PgConnection};

use super::rotation::{on_secured_stack, presented};
use super::*;
use crate::callers::status;
use crate::denials::databases::url_of;
use crate::personal_data::{Canary, parts_of};
use crate::wires::reaches_kafka;

const CONNECT: &str = "connect";

/// How long the flows may take for what happened so far.
const FLOW_TIMEOUT: Duration = Duration::from_secs(120);

/// A rotation waits for the end of the last token.
const TOKEN_LIFETIME: Duration = Duration::from_secs(30);
const DEPOSIT_CENTS: i64 = 1_000_000;

/// The roles of the worker's connectors, each with the service in whose cluster it is, and its database.
const ROLES: [(&str, &str, &str); 4] = [
    ("order", "order_connector", "order"),
    ("payment", "payment_connector", "payment"),
    ("stock", "stock_connector", "stock"),
    (reporting::BESIDE, reporting::NAME, reporting::NAME),
];

/// Everything that a secured stack can have, at once.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes nine minutes: make faults"]
async fn flows_on_a_secured_stack_know_their_callers_and_no_customer_and_survive_a_rotation()
-> Result<()> {
    on_secured_stack(async |stack| {
        stack.process_streams()?;
        connectors::choose(stack, Carrier::Cdc)?;
        reporting::add(stack).await?;
        let client = start_and_seed(stack).await?;
        connectors::apply(stack).await?;
        connectors::wait_until_carried(stack, Carrier::Cdc, FLOW_TIMEOUT).await?;
        reporting::apply(stack).await?;
        the_stream_processor_asks_for_a_scope(stack).await?;
        the_worker_serves_its_own_certificate_alone(stack).await?;

        let canary = Canary(Uuid::now_v7());
        buy(&client, canary.0).await?;
        wait_until_equal(stack, &client).await?;
        check_places(stack, &client, &canary).await?;
        erasure::run(stack, canary.0, None).await?;
        renew_under_load(stack, &client).await?;
        wait_until_equal(stack, &client).await?;
        check_places(stack, &client, &canary).await?;
        check_passwords_in_log(stack)?;
        assert_verified(&client).await
    })
    .await
}

/// The rows are those of the orders, and so are the sums.
async fn wait_until_equal(stack: &Stack, client: &Client) -> Result<()> {
    rows::wait_until_equal(client, stack, FLOW_TIMEOUT).await?;
    streams::wait_until_equal(client, stack, FLOW_TIMEOUT).await.map(drop)
}

async fn the_stream_processor_asks_for_a_scope(stack: &Stack) -> Result<()> {
    let issuer = stack.token_issuer()?.context("an issuer")?;
    // Its issuer has the same name and another key.
    let stranger = Stack::ephemeral(stack.description())?;
    let foreign = stranger.token_issuer()?.context("an issuer")?;
    let customer = Identity::Customer(rich_customer());
    let sign = |scopes: &str| issuer.sign("someone", scopes, TOKEN_LIFETIME).map(Some);
    let (_, url) = stack.streams_urls()?.into_iter().next().context("a stream processor")?;
    for (what, token, expected) in [
        ("no token", None, 401),
        ("another issuer", Some(foreign.sign("shop", "sales:read", TOKEN_LIFETIME)?), 401),
        ("a customer", sign(customer.scopes())?, 403),
        ("the support", sign(Identity::Support.scopes())?, 403),
        ("no scope", sign("")?, 403),
        ("the shop", sign("sales:read")?, 200),
        ("an operator", sign(Identity::Operator.scopes())?, 200),
    ] {
        for path in ["sales", "outcomes"] {
            let status = status(stack, &format!("{url}/{path}"), token.as_deref()).await?;
            ensure!(status == expected, "{what} at {path}: {status} in place of {expected}");
        }
    }
    Ok(())
}

/// Its REST API can read the passwords of the connectors' roles, and write wherever these roles may.
async fn the_worker_serves_its_own_certificate_alone(stack: &Stack) -> Result<()> {
    let url = format!("{}/connectors", stack.connect_url()?.context("no Kafka Connect")?);
    let own = stack.connect_certificate()?.context("a certificate")?;
    let get = async |certificate: Option<&Path>| -> Result<u16> {
        let mut http = checker::http::client_builder(stack.ca_certificate()?.as_deref())?;
        if let Some(file) = certificate {
            let pem = std::fs::read(file).with_context(|| format!("{}", file.display()))?;
            http = http.identity(Certificate::from_pkcs8_pem(&pem, &pem)?);
        }
        let answer = http.build()?.get(&url).send().await;
        Ok(answer.map_or(0, |answer| answer.status().as_u16()))
    };
    ensure!(get(Some(&own)).await? == 200, "its own certificate is accepted");
    ensure!(get(None).await? == 0, "without a certificate it answers");
    for other in ["order", "administrator", "contracts"] {
        let status = get(Some(&own.with_file_name(format!("{other}.pem")))).await?;
        ensure!(status == 0, "it answers the certificate of {other} with {status}");
    }
    let plain = reqwest::Client::builder().no_proxy().build()?;
    let plain = plain.get(url.replace("https:", "http:")).send().await;
    ensure!(plain.is_err(), "it answers without TLS: {plain:?}");
    Ok(())
}

/// A declined order and a confirmed one.
async fn buy(client: &Client, customer: Uuid) -> Result<()> {
    let order = client.place_until_accepted(customer, &basket()).await?;
    let declined = client.wait_until_ended(order.order_id, FLOW_TIMEOUT).await?;
    ensure!(declined.leg("payment") == "declined", "{declined:?}");
    client.deposit(customer, DEPOSIT_CENTS, &Uuid::now_v7().to_string()).await?;
    let order = client.place_until_accepted(customer, &basket()).await?;
    wait_until_confirmed(client, &[order]).await
}

/// The id of a customer is in the topics of the class personal, and in no other topic, no row of the reports and no log.
async fn check_places(stack: &Stack, client: &Client, canary: &Canary) -> Result<()> {
    rows::assert_no_customer(stack, &[canary.0]).await?;
    let personal = saga_topics().iter().filter(|topic| topic.is_personal());
    let personal: Vec<&str> = personal.map(|topic| topic.name).collect();
    let kafka = client.addresses.kafka.clone();
    let contents = tokio::task::spawn_blocking(move || read_all_topics(&kafka)).await??;
    for topic in events::INTERNAL_TOPICS.iter().map(|topic| topic.name).chain(personal.clone()) {
        ensure!(contents.iter().any(|(name, _)| name == topic), "{topic} was not searched");
    }
    for (topic, bytes) in &contents {
        let is_found = canary.is_in(bytes);
        let expected = personal.contains(&topic.as_str());
        ensure!(is_found == expected, "{topic}: the customer is found: {is_found}");
    }
    canary.check_logs(stack).await
}

/// The bytes of every topic: keys, values and headers.
fn read_all_topics(kafka: &ClientConfig) -> Result<Vec<(String, Vec<u8>)>> {
    let consumer = create_consumer(kafka, "search")?;
    let metadata = consumer.fetch_metadata(None, TIMEOUT)?;
    let mut contents = Vec::new();
    for topic in metadata.topics().iter().map(|topic| topic.name()) {
        let mut bytes = Vec::new();
        let read = read_records(kafka, topic, |message| {
            for part in parts_of(message) {
                bytes.extend_from_slice(part);
                bytes.push(0);
            }
            Ok(())
        });
        read.with_context(|| topic.to_string())?;
        contents.push((topic.to_string(), bytes));
    }
    Ok(contents)
}

/// No request fails, and no old password is accepted afterwards.
async fn renew_under_load(stack: &Stack, client: &Client) -> Result<()> {
    let urls = || ROLES.map(|(service, role, database)| url_of(stack, service, role, database));
    let old = urls().into_iter().collect::<Result<Vec<_>>>()?;
    let kafka = stack.kafka_client_as(CONNECT)?;
    let worker = stack.connect_url()?.context("no Kafka Connect")?;
    let address = worker.trim_start_matches("https://");
    let certificate = presented(address).await?;
    under_load_until_done(client, 30, async {
        sleep(Duration::from_secs(5)).await;
        stack.rotate(false).await
    })
    .await?;
    for ((old, new), (_, role, _)) in old.iter().zip(urls()).zip(ROLES) {
        ensure!(PgConnection::connect(old).await.is_err(), "{role} still has its old password");
        PgConnection::connect(&new?).await?.close().await?;
    }
    ensure!(reaches_kafka(kafka).await.is_err(), "Kafka accepts the old password of the worker");
    reaches_kafka(stack.kafka_client_as(CONNECT)?).await?;
    ensure!(presented(address).await? != certificate, "the worker presents its old certificate");
    Ok(())
}

/// No password that the worker reads is in its log.
fn check_passwords_in_log(stack: &Stack) -> Result<()> {
    let log = std::fs::read_to_string(stack.log_file(CONNECT)?)?;
    let mut count = 0;
    for file in std::fs::read_dir(stack.directory().join("secrets").join(CONNECT))? {
        let file = file?.path();
        let password = std::fs::read_to_string(&file)?;
        ensure!(!log.contains(&password), "the log has the password in {}", file.display());
        count += 1;
    }
    // Those of the roles, its own for Kafka, and that of each connector for Kafka.
    let users = 1 + SERVICES.len() + reporting::CONNECTORS.len();
    ensure!(count == ROLES.len() + users, "the worker has {count} passwords");
    Ok(())
}
