//! What is refused for long: an event by a rule of the database's own, schemas by their registry, and bytes
//! without end.

use e2e::strangers;
use rdkafka::producer::FutureRecord;
use sqlx::{Connection, PgConnection};

use super::*;
use crate::records::letters_of;
use crate::refusals::{letters_at_readers, refused_by_a_rule, through_a_gateway};

/// Ten tries over five minutes, and the time in which another order is placed.
const SET_ASIDE_WITHIN: Duration = Duration::from_secs(360);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes six minutes: make faults"]
async fn an_event_that_a_rule_of_the_database_refuses_for_five_minutes_becomes_a_dead_letter()
-> Result<()> {
    alone(async |stage| {
        refused_by_a_rule(stage, async |_| {
            let client = &stage.client;
            let began = Instant::now();
            eventually("the dead letter", SET_ASIDE_WITHIN, async || {
                all_end(client, &place_all(client, 1).await?).await?;
                let letters = letters_of(client, "payment").await?;
                let refused = letters.iter().find(|(.., reason)| reason.contains("too large"));
                let (.., kind, reason) = refused.context("no letter yet")?;
                ensure!(kind == "failing" && reason.contains("P0001"), "{kind}: {reason}");
                Ok(())
            })
            .await?;
            ensure!(began.elapsed() > Duration::from_secs(280), "{:?}", began.elapsed());
            Ok(())
        })
        .await?;
        replay_all(stage, "payment").await
    })
    .await
}

/// Once their cause is gone.
async fn replay_all(Stage { client, .. }: &Stage, service: &str) -> Result<()> {
    let url = format!("{}/dead-letters/replay", client.addresses.operators[service]);
    let answer = reqwest::Client::new().post(url).json(&serde_json::json!({})).send().await?;
    ensure!(answer.status().is_success(), "{}", answer.text().await?);
    Ok(())
}

/// 300 MB of them.
const RECORDS: usize = 1_500;
const RECORD_BYTES: usize = 200 * 1024;

/// What a letter takes up in the database, indexes and all.
const KEPT_BYTES_MAX: i64 = 12 * 1024;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn megabytes_of_bytes_that_are_no_event_take_up_kilobytes_of_a_database() -> Result<()> {
    alone(async |Stage { client, .. }| {
        let size = async || -> Result<i64> {
            let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
            let size = "select pg_database_size(current_database())";
            Ok(sqlx::query_scalar(size).fetch_one(&mut db).await?)
        };
        let (before, there) = (size().await?, letters_of(client, "order").await?.len());
        let producer = strangers::producer(client)?;
        let payload: Vec<u8> =
            (0..RECORD_BYTES).map(|n| if n == 0 { 7 } else { rand::random() }).collect();
        for _ in 0..RECORDS / 50 {
            try_join_all((0..50).map(async |_| {
                let record = FutureRecord::to(events::payments::VERIFIED.name);
                let record = record.key(strangers::KEY).payload(&payload);
                producer.send(record, SOON).await.map_err(|(error, _)| error)
            }))
            .await?;
        }
        eventually("a letter for each", DRAINED, async || {
            let letters = letters_of(client, "order").await?.len() - there;
            ensure!(letters == RECORDS, "{letters} letters");
            Ok(())
        })
        .await?;
        let grown = size().await? - before;
        ensure!(grown < RECORDS as i64 * KEPT_BYTES_MAX, "{grown} bytes for {RECORDS} records");
        all_end(client, &place_all(client, 3).await?).await
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute with its restarts: make faults"]
async fn while_the_registry_refuses_every_schema_id_events_wait_and_none_is_set_aside() -> Result<()>
{
    through_a_gateway(async |Stage { client, .. }, gateway| {
        let before = letters_at_readers(client).await?;
        gateway.refuse("/schemas/ids/", 403, 40301);
        let orders = place_all(client, 6).await?;
        sleep(Duration::from_secs(8)).await;
        ensure!(letters_at_readers(client).await? == before);
        let waiting = client.order(orders[0].order_id).await?;
        ensure!(waiting.status == "pending", "{waiting:?}");
        gateway.pass_on();
        all_end(client, &orders).await
    })
    .await
}

/// The registry has a schema, and one of its replicas does not have it yet.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute with its restarts: make faults"]
async fn a_registry_that_is_behind_for_a_while_is_waited_for() -> Result<()> {
    through_a_gateway(async |Stage { client, .. }, gateway| {
        let before = letters_at_readers(client).await?;
        gateway.refuse("/schemas/ids/", 404, 40403);
        let orders = place_all(client, 6).await?;
        sleep(Duration::from_secs(5)).await;
        gateway.pass_on();
        all_end(client, &orders).await?;
        ensure!(letters_at_readers(client).await? == before);
        Ok(())
    })
    .await
}
