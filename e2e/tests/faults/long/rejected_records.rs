//! Long refusals: an event refused by a rule of the database, schemas refused by the registry, and
//! undecodable bytes without end.

use chassis::event::Event;
use e2e::client::kafka;
use e2e::client::sample_events;
use rdkafka::producer::FutureRecord;
use sqlx::{Connection, PgConnection};

use super::*;
use crate::rejected_records::{
    count_dead_letters_at_readers, while_a_rule_refuses_an_order, with_registry_gateway,
};

/// Ten attempts over five minutes, and the time for another order.
const DEAD_LETTER_TIMEOUT: Duration = Duration::from_secs(360);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes six minutes: make faults"]
async fn an_event_that_a_rule_of_the_database_refuses_for_five_minutes_becomes_a_dead_letter()
-> Result<()> {
    with_exclusive_fixture(async |fixture| {
        while_a_rule_refuses_an_order(fixture, async |_| {
            let client = &fixture.client;
            let began = Instant::now();
            eventually("the dead letter", DEAD_LETTER_TIMEOUT, async || {
                confirm_orders(client, 1).await?;
                let letters = waiting_dead_letters(client, "payment").await?;
                let refused = letters.iter().find(|(.., reason)| reason.contains("too large"));
                let (.., kind, reason) = refused.context("no dead letter yet")?;
                ensure!(kind == "handler_failed" && reason.contains("P0001"), "{kind}: {reason}");
                Ok(())
            })
            .await?;
            ensure!(began.elapsed() > Duration::from_secs(280), "{:?}", began.elapsed());
            Ok(())
        })
        .await?;
        replay_all(fixture, "payment").await
    })
    .await
}

/// Replays the dead letters after their cause is removed.
async fn replay_all(Fixture { client, .. }: &Fixture, service: &str) -> Result<()> {
    let url = format!("{}/dead-letters/replay", client.addresses.admins[service]);
    let answer = reqwest::Client::new().post(url).json(&serde_json::json!({})).send().await?;
    ensure!(answer.status().is_success(), "{}", answer.text().await?);
    Ok(())
}

/// 300 MB of records.
const RECORDS: usize = 1_500;
const RECORD_BYTES: usize = 200 * 1024;

/// The size of a dead letter in the database, indexes included.
const STORED_BYTES_MAX: i64 = 12 * 1024;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn megabytes_of_undecodable_records_take_up_kilobytes_of_a_database() -> Result<()> {
    with_exclusive_fixture(async |Fixture { client, .. }| {
        let size = async || -> Result<i64> {
            let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
            let size = "select pg_database_size(current_database())";
            Ok(sqlx::query_scalar(size).fetch_one(&mut db).await?)
        };
        let (before, there) = (size().await?, waiting_dead_letters(client, "order").await?.len());
        let producer = kafka::create_producer(client)?;
        let payload: Vec<u8> =
            (0..RECORD_BYTES).map(|n| if n == 0 { 7 } else { rand::random() }).collect();
        for _ in 0..RECORDS / 50 {
            try_join_all((0..50).map(async |_| {
                let record = FutureRecord::to(events::payments::PaymentVerified::topic().name);
                let record = record.key(sample_events::POISON_KEY).payload(&payload);
                producer.send(record, TIMEOUT).await.map_err(|(error, _)| error)
            }))
            .await?;
        }
        let letters = async || Ok(waiting_dead_letters(client, "order").await?.len() - there);
        wait_for("a dead letter for each", DRAIN_TIMEOUT, letters, |it| *it == RECORDS).await?;
        let grown = size().await? - before;
        ensure!(grown < RECORDS as i64 * STORED_BYTES_MAX, "{grown} bytes for {RECORDS} records");
        confirm_orders(client, 3).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute with its restarts: make faults"]
async fn while_the_registry_refuses_every_schema_id_events_wait_and_none_becomes_a_dead_letter()
-> Result<()> {
    with_registry_gateway(async |Fixture { client, .. }, gateway| {
        let before = count_dead_letters_at_readers(client).await?;
        gateway.reject("/schemas/ids/", 403, 40301);
        let orders = place_orders(client, 6).await?;
        sleep(Duration::from_secs(8)).await;
        ensure!(count_dead_letters_at_readers(client).await? == before);
        let waiting = client.get_order(orders[0].order_id).await?;
        ensure!(waiting.status == "pending", "{waiting:?}");
        gateway.forward_all();
        wait_until_confirmed(client, &orders).await
    })
    .await
}

/// The registry has a schema, and one of its replicas does not have it yet.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute with its restarts: make faults"]
async fn events_wait_for_a_registry_that_is_behind_for_a_while() -> Result<()> {
    with_registry_gateway(async |Fixture { client, .. }, gateway| {
        let before = count_dead_letters_at_readers(client).await?;
        gateway.reject("/schemas/ids/", 404, 40403);
        let orders = place_orders(client, 6).await?;
        sleep(Duration::from_secs(5)).await;
        gateway.forward_all();
        wait_until_confirmed(client, &orders).await?;
        ensure!(count_dead_letters_at_readers(client).await? == before);
        Ok(())
    })
    .await
}
