//! The id of a customer is in the places that docs/security.md names, and in no log, span, metric or open topic.

use anyhow::{Context, Result, ensure};
use checker::read_topic;
use e2e::client::http_client::Client;
use e2e::stack_description::SERVICES;
use events::saga_topics;
use futures::future::try_join_all;
use launcher::Stack;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use reqwest::Method;
use uuid::Uuid;

use crate::collector::Collector;
use crate::dead_letters::{
    REFUSE_PAYMENTS, dead_letter_for, replay, run_successfully, with_strict_check,
};
use crate::environment::with_environment;
use crate::fixture::*;

const DEPOSIT_CENTS: i64 = 1_000_000;

/// Requests at once with one key: all but one find its row in the database.
const EQUAL_DEPOSITS: usize = 8;

#[tokio::test(flavor = "multi_thread")]
async fn the_id_of_a_customer_is_in_no_log_span_metric_or_open_topic() -> Result<()> {
    let collector = Collector::start().await?;
    with_exclusive_fixture(async |fixture| {
        let canary = Canary(Uuid::now_v7());
        let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address.clone())];
        with_environment(fixture, &variables, async || {
            buy(fixture, canary.0).await?;
            send_rejected_requests(&fixture.client, canary.0).await?;
            for service in SERVICES {
                wait_until_outbox_empty(&fixture.client, service).await?;
                wait_until_all_read(&fixture.client, service).await?;
            }
            canary.check_metrics(&fixture.stack).await
        })
        .await?;
        // The services were stopped, so their last spans have arrived.
        let spans = collector.bodies().concat();
        ensure!(is_part(b"/orders", &spans), "no span of a request arrived");
        canary.check("a span", &spans)?;
        canary.check_topics(&fixture.client)?;
        canary.check_logs(&fixture.stack).await
    })
    .await
}

/// A declined order, a confirmed one, and one whose event was a dead letter of payment.
async fn buy(Fixture { stack, client }: &Fixture, customer: Uuid) -> Result<()> {
    place_until(client, customer, "cancelled").await.context("without an account")?;
    let key = Uuid::now_v7().to_string();
    let deposit = || client.deposit(customer, DEPOSIT_CENTS, &key);
    try_join_all((0..EQUAL_DEPOSITS).map(|_| deposit())).await?;
    place_until(client, customer, "confirmed").await?;
    buy_after_a_dead_letter(stack, client, customer).await
}

/// An order whose event is a dead letter of payment, which is replayed.
pub async fn buy_after_a_dead_letter(stack: &Stack, client: &Client, customer: Uuid) -> Result<()> {
    let refused = with_strict_check(stack, REFUSE_PAYMENTS, async || {
        let refused = client.place_until_accepted(customer, &basket()).await?;
        let id = dead_letter_for(stack, "payment", &refused).await?;
        Ok((refused, id))
    });
    let (refused, id) = refused.await?;
    run_successfully(stack, replay("payment", id)).await?;
    wait_until_confirmed_within(client, &[refused], TIMEOUT).await
}

/// Requests that name the customer, and are read or refused.
async fn send_rejected_requests(client: &Client, customer: Uuid) -> Result<()> {
    let order = format!("{{\"customer_id\": \"{customer}\", \"lines\": []");
    let orders = "/orders".to_string();
    let deposits = format!("/accounts/{customer}/deposits");
    let requests = [
        (Method::POST, "order", orders.clone(), format!("{order}}}"), 400..500),
        (Method::POST, "order", orders.clone(), format!("{order}, \"gift\": true}}"), 400..500),
        (Method::POST, "order", orders.clone(), order.replace("\", ", "x\", ") + "}", 400..500),
        (Method::POST, "order", orders, order, 400..500),
        (Method::POST, "payment", deposits.clone(), "{\"amount_cents\": 0}".into(), 400..500),
        (Method::POST, "payment", deposits, String::new(), 400..500),
        (Method::GET, "order", format!("/orders?customer_id={customer}"), String::new(), 200..201),
        (Method::GET, "order", format!("/orders?customer_id={customer}x"), String::new(), 400..500),
        (Method::GET, "payment", format!("/accounts/{customer}"), String::new(), 200..201),
        (Method::DELETE, "payment", format!("/accounts/{customer}"), String::new(), 400..500),
    ];
    for (method, service, path, body, statuses) in requests {
        let key = (method == Method::POST).then(|| Uuid::now_v7().to_string());
        let body = (method == Method::POST).then(|| body.into_bytes());
        let answer = client.request(method, service, &path, key.as_deref(), body).await?;
        ensure!(statuses.contains(&answer.status), "{path}: {}", answer.status);
    }
    Ok(())
}

/// The id of a customer that nothing else contains.
pub struct Canary(pub Uuid);

impl Canary {
    /// Whether bytes contain the id: as text, or as it is.
    pub fn is_in(&self, bytes: &[u8]) -> bool {
        let lower = bytes.to_ascii_lowercase();
        is_part(self.0.hyphenated().to_string().as_bytes(), &lower)
            || is_part(self.0.simple().to_string().as_bytes(), &lower)
            || is_part(self.0.as_bytes(), bytes)
    }

    pub fn check(&self, place: &str, bytes: &[u8]) -> Result<()> {
        ensure!(!self.is_in(bytes), "the id of the customer is in {place}");
        Ok(())
    }

    async fn check_metrics(&self, stack: &Stack) -> Result<()> {
        for service in SERVICES {
            let url = format!("{}/metrics", stack.probe_url(service)?);
            let metrics = reqwest::get(&url).await?.error_for_status()?.bytes().await?;
            ensure!(is_part(b"http_requests_total", &metrics), "{url} has no metrics");
            self.check(&url, &metrics)?;
        }
        Ok(())
    }

    /// It is in both topics of the class personal, so the search finds what there is.
    fn check_topics(&self, client: &Client) -> Result<()> {
        let kafka = &client.addresses.kafka;
        for topic in saga_topics() {
            let mut is_found = false;
            let read = || {
                read_topic(kafka, topic, |_, message| {
                    is_found |= parts_of(message).any(|part| self.is_in(part));
                    Ok(())
                })
            };
            tokio::task::block_in_place(read).with_context(|| topic.name)?;
            let is_personal = topic.is_personal();
            ensure!(is_found == is_personal, "{}: found is {is_found}", topic.name);
        }
        Ok(())
    }

    /// In those of Kafka, the databases and the registry too.
    pub async fn check_logs(&self, stack: &Stack) -> Result<()> {
        for name in component_names(stack).await? {
            let log = std::fs::read(stack.log_file(&name)?).with_context(|| name.clone())?;
            ensure!(!log.is_empty(), "{name} has no log");
            self.check(&format!("the log of {name}"), &log)?;
        }
        Ok(())
    }
}

/// The values of the headers of a record, its key and its payload.
pub fn parts_of<'a>(message: &'a BorrowedMessage<'_>) -> impl Iterator<Item = &'a [u8]> {
    let headers = message.headers().into_iter().flat_map(|it| it.iter());
    let values = headers.filter_map(|header| header.value);
    values.chain(message.key()).chain(message.payload())
}

fn is_part(part: &[u8], bytes: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
