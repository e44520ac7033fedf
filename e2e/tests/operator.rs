//! What operators ask for beside announcements: the read model made anew, and a saga shown.

use anyhow::{Context, Result, ensure};
use chassis::avro::frame;
use e2e::client::Client;
use e2e::wait::{ask_again, eventually};
use e2e::{Stack, strangers, trail};
use rdkafka::producer::FutureRecord;
use serde_json::Value;
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::launcher::room;
use crate::stage::{DRAINED, SOON, Stage, alone, basket, nobody_dies, rich, together};

/// What a service says there is to buy, by SKU.
async fn items(client: &Client, service: &str) -> Result<Vec<(String, i64, i64)>> {
    let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
    let sql = "select sku, price_cents, version from items order by sku";
    Ok(sqlx::query_as(sql).fetch_all(&mut db).await?)
}

/// A record of an item whose schema no registry has.
async fn send_unread_item(client: &Client, sku: &str, partition: Option<i32>) -> Result<()> {
    let payload = frame(strangers::UNKNOWN_SCHEMA, b"?");
    let record = FutureRecord::to("stock.items").key(sku).payload(&payload);
    let record = FutureRecord { partition, ..record };
    strangers::producer(client)?.send(record, SOON).await.map_err(|(error, _)| error)?;
    Ok(())
}

/// Rebuilds. Kafka or the registry may stand still for longer than that waits for them.
async fn rebuild(client: &Client) -> Result<Value> {
    let not_now = |told: &Result<Value>| {
        told.as_ref().is_err_and(|refusal| refusal.to_string().contains(NOT_NOW))
    };
    ask_again(SOON, async || e2e::rebuild::run(client).await, not_now).await
}

/// What a rebuild says of a topic that it can't read for now.
const NOT_NOW: &str = "The topic can't be read now";

/// Rebuilds, which has to remove, repair and keep so many.
async fn rebuilt(client: &Client, counts: [u64; 3]) -> Result<()> {
    let rebuilt = rebuild(client).await?;
    let done = ["removed", "repaired", "kept"].map(|name| rebuilt[name].as_u64());
    ensure!(done == counts.map(Some), "{rebuilt}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_model_that_was_spoiled_is_rebuilt_to_what_its_topic_says_while_orders_go_on()
-> Result<()> {
    alone(async |Stage { client, .. }| {
        let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
        let before = items(client, "order").await?;
        ensure!(before.len() > 10 && before == items(client, "stock").await?);
        for spoil in [
            "delete from items where sku in (select sku from items where sku > 'd' order by sku limit 3)",
            // The right version, and one that stock has yet to reach: no later event repairs these.
            "update items set price_cents = price_cents + 1 where sku = 'wool-cap'",
            "update items set version = 99, name = 'Wrong' where sku = 'ships-biscuit'",
            "insert into items values ('nobodys', 'Nobody''s', 1, 'EUR', 1)",
        ] {
            sqlx::query(spoil).execute(&mut db).await?;
        }
        let ordering = async {
            for _ in 0..20 {
                client.placed(rich(), &basket()).await?;
            }
            Ok(())
        };
        let changing = async {
            for price in 1..=20 {
                client.put_item("changing", "Changing", price).await?;
            }
            Ok(())
        };
        let rebuilding = async {
            let mut first = Value::Null;
            for nth in 0..5 {
                let rebuilt = rebuild(client).await?;
                if nth == 0 {
                    first = rebuilt;
                }
            }
            Ok::<_, anyhow::Error>(first)
        };
        let (first, (), ()) = tokio::try_join!(rebuilding, ordering, changing)?;
        ensure!(first["removed"] == 1 && first["repaired"].as_u64() >= Some(5), "{first}");
        eventually("the read model to be stock's again", SOON, async || {
            let (order, stock) = (items(client, "order").await?, items(client, "stock").await?);
            ensure!(order == stock, "{order:?} is not {stock:?}");
            Ok(())
        })
        .await?;
        let again = rebuild(client).await?;
        ensure!(again["removed"] == 0 && again["repaired"] == 0, "{again}");
        Ok(())
    })
    .await
}

/// As after a registry was restored without the newest schema: what the topic says of an item is there,
/// and can't be read.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_leaves_an_item_as_it_is_whose_last_record_in_any_partition_it_can_not_read()
-> Result<()> {
    alone(async |Stage { client, .. }| {
        let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
        client.put_item("unread", "Unread", 1).await?;
        eventually("the item to be known", SOON, async || {
            ensure!(items(client, "order").await? == items(client, "stock").await?);
            Ok(())
        })
        .await?;
        for newer in [
            "update items set version = 99 where sku = 'unread'",
            "insert into items values ('unread too', 'Unread too', 1, 'EUR', 1)",
        ] {
            sqlx::query(newer).execute(&mut db).await?;
        }
        for sku in ["unread", "unread too"] {
            send_unread_item(client, sku, None).await?;
        }
        rebuilt(client, [0, 0, 2]).await?;

        // Where there is no row, what can be read is better than nothing.
        sqlx::query("delete from items where sku like 'unread%'").execute(&mut db).await?;
        rebuilt(client, [0, 1, 0]).await?;

        // What comes after such a record and can be read is believed again.
        sqlx::query("update items set version = 99 where sku = 'unread'").execute(&mut db).await?;
        client.put_item("unread", "Unread", 2).await?;
        eventually("the newer record to be heard", SOON, async || rebuilt(client, [0, 1, 0]).await)
            .await?;

        // Of records in different partitions, as after some were added, nobody knows which came last.
        for partition in 0..events::stock::ITEMS.partitions {
            send_unread_item(client, "unread", Some(partition)).await?;
        }
        client.put_item("unread", "Unread", 3).await?;
        eventually("the newest record to be heard", SOON, async || {
            ensure!(items(client, "order").await? == items(client, "stock").await?);
            Ok(())
        })
        .await?;
        sqlx::query("update items set version = 99 where sku = 'unread'").execute(&mut db).await?;
        rebuilt(client, [0, 0, 1]).await?;
        sqlx::query("update items set version = 3 where sku = 'unread'").execute(&mut db).await?;
        Ok(())
    })
    .await
}

/// As after the broker lost its disk, or the registry its schemas: what is known is all there is.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_that_finds_no_item_to_read_changes_nothing_and_says_why() -> Result<()> {
    let _room = room().await?;
    let stack = Stack::ephemeral()?;
    nobody_dies(&stack, async {
        stack.up().await?;
        let client = Client::of(&stack)?;
        let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
        let known = "insert into items values ('known', 'Known', 1, 'EUR', 1)";
        sqlx::query(known).execute(&mut db).await?;
        let refused = async |problem: &str| -> Result<()> {
            let told = rebuild(&client).await.err().context("it is rebuilt")?;
            ensure!(
                told.to_string().contains(&format!("409 {{\"type\":\"/problems/{problem}\"")),
                "{told}"
            );
            let kept = vec![("known".to_string(), 1, 1)];
            ensure!(items(&client, "order").await? == kept);
            Ok(())
        };
        refused("nothing-announced").await?;

        send_unread_item(&client, "unread", None).await?;
        refused("nothing-readable").await
    })
    .await
}

/// The rebuild is held in its last step, before it writes what it read: at a row that it is about to
/// remove. Whoever writes an item now, as the consumer does, has to wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_item_written_during_the_last_step_of_a_rebuild_is_not_set_back_by_it() -> Result<()> {
    alone(async |Stage { client, .. }| {
        let url = &client.addresses.databases["order"];
        let mut looking = PgConnection::connect(url).await?;
        let mut holding = PgConnection::connect(url).await?;
        let mut writing = PgConnection::connect(url).await?;
        let nobodys = "insert into items values ('nobodys', 'Nobody''s', 1, 'EUR', 1)";
        sqlx::query(nobodys).execute(&mut looking).await?;
        let mut held = holding.begin().await?;
        let hold = "select from items where sku = 'nobodys' for update";
        sqlx::query(hold).execute(&mut *held).await?;

        let meanwhile = async {
            waiting(&mut looking, |waiting| waiting == 1).await?;
            let write = tokio::spawn(async move {
                let newer = "update items set version = version + 1, name = 'Newer'
                             where sku = 'wool-cap'";
                sqlx::query(newer).execute(&mut writing).await
            });
            waiting(&mut looking, |waiting| waiting == 2 || write.is_finished()).await?;
            held.rollback().await?;
            Ok(write.await??)
        };
        let (rebuilt, written) = tokio::try_join!(rebuild(client), meanwhile)?;
        ensure!(rebuilt["removed"] == 1 && written.rows_affected() == 1, "{rebuilt}");
        let name: String = sqlx::query_scalar("select name from items where sku = 'wool-cap'")
            .fetch_one(&mut looking)
            .await?;
        ensure!(name == "Newer", "it is {name} again");
        let again = rebuild(client).await?;
        ensure!(again["repaired"] == 1, "{again}");
        Ok(())
    })
    .await
}

/// Waits until so many sessions of a database wait for locks.
async fn waiting(db: &mut PgConnection, enough: impl Fn(i64) -> bool) -> Result<()> {
    eventually("sessions to wait for a lock", SOON, async || {
        let waiting: i64 = sqlx::query_scalar(
            "select count(*) from pg_stat_activity
             where datname = current_database() and wait_event_type = 'Lock'",
        )
        .fetch_one(&mut *db)
        .await?;
        ensure!(enough(waiting), "{waiting}");
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saga_is_shown_with_every_event_and_with_what_it_waits_for() -> Result<()> {
    alone(async |Stage { stack, client }| {
        let ended = client.placed(rich(), &basket()).await?.order_id;
        client.ended(ended, SOON).await?;
        let shown = eventually("every inbox to be shown", SOON, async || {
            let shown = trail::run(client, ended).await?;
            ensure!(!shown.join("\n").contains("waits"), "{}", shown.join("\n"));
            Ok(shown)
        })
        .await?;
        let text = shown.join("\n");
        for event in ["orders.created", "payments.verified", "stock.reserved", "orders.confirmed"] {
            let line = shown.iter().find(|line| line.contains(event)).context(text.clone())?;
            // It was as long in the outbox as a commit took, whose disk may stand still.
            let was_sent = line.contains(" ms") || line.contains(" s ");
            ensure!(line.contains('@') && was_sent, "{text}");
        }
        ensure!(shown[3].contains("orders.created"), "in time order:\n{text}");
        ensure!(text.contains("status confirmed, payment verified, stock reserved"), "{text}");
        ensure!(text.ends_with("nothing is waited for"), "{text}");
        ensure!(shown.iter().all(|line| line.chars().count() <= 100), "{text}");

        stack.kill("stock").await?;
        let pending = client.placed(rich(), &basket()).await?.order_id;
        let waits = ["orders.created waits for stock", "the order waits for an answer of stock"];
        eventually("payment's answer to be shown", SOON, async || {
            let text = trail::run(client, pending).await?.join("\n");
            ensure!(waits.iter().all(|wait| text.contains(wait)), "{text}");
            ensure!(text.contains("status pending, payment verified, stock waiting"), "{text}");
            Ok(())
        })
        .await?;
        stack.kill("kafka").await?;
        let unsent = client.placed(rich(), &basket()).await?.order_id;
        stack.start("kafka").await?;
        stack.start("stock").await?;
        client.ended(unsent, DRAINED).await?;
        ensure!(trail::run(client, Uuid::now_v7()).await.is_err(), "nobody placed that");
        Ok(())
    })
    .await
}

/// The port is on loopback and knows no passwords: what a page in a browser there asks has to be told from
/// what people ask.
#[tokio::test(flavor = "multi_thread")]
async fn operators_are_answered_and_pages_in_their_browsers_are_not() -> Result<()> {
    together(async |Stage { client, .. }| {
        for (service, url) in &client.addresses.operators {
            let ask = |header, value| {
                let request = reqwest::Client::new().post(format!("{url}/consumer/resume"));
                async move {
                    Ok::<_, anyhow::Error>(request.header(header, value).send().await?.status())
                }
            };
            ensure!(ask("accept", "*/*").await?.is_success(), "{service} answers nobody");
            for (header, value) in [("origin", "https://example.com"), ("host", "example.com")] {
                let status = ask(header, value).await?;
                ensure!(status == 403, "{service} answers a page's {header}: {status}");
            }
        }
        Ok(())
    })
    .await
}
