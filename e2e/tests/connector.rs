//! A connector in place of the relays: its records are theirs, and nothing is lost.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use chassis::admin::republish::traceparent;
use checker::{kafka, read_topic};
use e2e::admin::connectors::{self, Carrier};
use e2e::admin::republish::{self, RepublishOptions};
use e2e::client::http_client::Client;
use events::saga_topics;
use launcher::{Stack, eventually};
use rdkafka::Message;
use sqlx::{Connection, PgConnection};

use crate::fixture::*;

const FORGED_KEY: &str = "forged";

/// A record without its offset and its time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct PlainRecord {
    topic: &'static str,
    partition: i32,
    key: Option<Vec<u8>>,
    value: Option<Vec<u8>>,
    headers: Vec<(String, Option<Vec<u8>>)>,
}

impl PlainRecord {
    fn header(&self, name: &str) -> Option<&[u8]> {
        let mut headers = self.headers.iter();
        headers.find(|(key, _)| key == name).and_then(|(_, value)| value.as_deref())
    }

    fn is_republished(&self) -> bool {
        let key = self.key.as_deref().map(String::from_utf8_lossy).unwrap_or_default();
        self.header("traceparent") == Some(traceparent(&key).as_bytes())
    }

    /// What a record of this topic looks like, whatever its event is.
    fn shape(&self) -> (&'static str, Vec<String>) {
        (self.topic, self.headers.iter().map(|(name, _)| name.clone()).collect())
    }
}

async fn read_all(client: &Client) -> Result<Vec<PlainRecord>> {
    let settings = client.addresses.kafka.clone();
    let read = move || {
        let mut records = Vec::new();
        for topic in saga_topics() {
            read_topic(&settings, topic, |position, message| {
                let headers = kafka::headers(message).context("a header cannot be read")?;
                let headers = headers
                    .into_iter()
                    .map(|header| (header.key.to_string(), header.value.map(<[u8]>::to_vec)));
                records.push(PlainRecord {
                    topic: topic.name,
                    partition: position.partition,
                    key: message.key().map(<[u8]>::to_vec),
                    value: message.payload().map(<[u8]>::to_vec),
                    headers: headers.collect(),
                });
                Ok(())
            })?;
        }
        Ok(records)
    };
    tokio::task::spawn_blocking(read).await?
}

/// The republished records, and the number of each: a republication has the same ids each time.
fn republished(records: &[PlainRecord]) -> BTreeMap<&PlainRecord, usize> {
    let mut counts = BTreeMap::new();
    for record in records.iter().filter(|record| record.is_republished()) {
        *counts.entry(record).or_default() += 1;
    }
    counts
}

/// Republishes everything, and waits until it is in Kafka. Returns all records.
async fn republish_all(stack: &Stack, client: &Client) -> Result<Vec<PlainRecord>> {
    let count = republish::run(stack, &RepublishOptions::default()).await?;
    let count: u64 = count.iter().map(|(_, count)| count).sum();
    let before = republished(&read_all(client).await?).values().sum::<usize>();
    eventually("the events to be in Kafka", TIMEOUT, async || {
        let records = read_all(client).await?;
        let there = republished(&records).values().sum::<usize>();
        ensure!(
            there % usize::try_from(count)? == 0 && there >= before.max(1),
            "{there} of {count}"
        );
        Ok(records)
    })
    .await
}

/// The same events by the relays and by the connectors: equal in every byte, header and partition.
#[tokio::test(flavor = "multi_thread")]
async fn the_records_of_the_connector_are_those_of_the_relay() -> Result<()> {
    let (_permit, stack) = own_stack().await?;
    without_unexpected_exits(&stack, async {
        let client = start_and_seed(&stack).await?;
        confirm_orders(&client, 20).await?;
        let by_relay = republish_all(&stack, &client).await?;
        let once = republished(&by_relay);

        connectors::switch(&stack, Carrier::Cdc).await?;
        connectors::wait_until_carried(&stack, Carrier::Cdc, TIMEOUT).await?;
        let by_both = republish_all(&stack, &client).await?;
        let twice = republished(&by_both);
        ensure!(once.keys().eq(twice.keys()), "a record differs: {once:?}, {twice:?}");
        let doubled = twice.values().all(|count| *count == 2);
        ensure!(doubled && once.len() > 60, "{} records, then {twice:?}", once.len());

        // Events with a cause have one header more.
        confirm_orders(&client, 20).await?;
        assert_verified(&client).await?;
        let all = read_all(&client).await?;
        let shapes = |records: &[PlainRecord]| {
            let shapes = records.iter().filter(|it| !it.is_republished());
            shapes.map(PlainRecord::shape).collect::<BTreeSet<_>>()
        };
        ensure!(shapes(&all) == shapes(&by_relay), "{:?}, {:?}", shapes(&all), shapes(&by_relay));
        assert_carries_no_foreign_topic(&client).await
    })
    .await
}

/// Kafka lets the worker write all topics, so the connector of order itself has to refuse one of payment.
async fn assert_carries_no_foreign_topic(client: &Client) -> Result<()> {
    let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
    let forge = "insert into chassis.captured_events
        select 0, 'payments.verified', $1, '', '1.0', '', '', '', '', '', null";
    sqlx::query(forge).bind(FORGED_KEY).execute(&mut db).await?;
    // The worker says only half a minute later that the connector has failed.
    let is_active = "select active from pg_replication_slots where slot_name = 'order_outbox'";
    eventually("the connector of order to refuse it", TIMEOUT, async || {
        ensure!(!sqlx::query_scalar::<_, bool>(is_active).fetch_one(&mut db).await?, "it goes on");
        Ok(())
    })
    .await?;
    let records = read_all(client).await?;
    ensure!(records.iter().all(|it| it.key.as_deref() != Some(FORGED_KEY.as_bytes())), "forged");
    Ok(())
}
