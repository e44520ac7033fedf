//! Operator commands beside republishing: the read model is rebuilt.

use anyhow::{Context, Result, ensure};
use chassis::event::Event;
use chassis::event::avro::frame;
use e2e::client::http_client::Client;
use e2e::client::kafka;
use e2e::client::sample_events::{schema_id, valid_body};
use e2e::scenarios::poison;
use launcher::{eventually, retry_while};
use rdkafka::producer::FutureRecord;
use reqwest::Method;
use serde_json::Value;
use sqlx::{Connection, PgConnection};

use crate::fixture::*;

/// The items of a service, by SKU.
async fn items(client: &Client, service: &str) -> Result<Vec<(String, i64, i64)>> {
    let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
    let sql = "select sku, price_cents, version from items order by sku";
    Ok(sqlx::query_as(sql).fetch_all(&mut db).await?)
}

/// Waits until order has the items of stock.
async fn wait_until_items_equal(client: &Client) -> Result<()> {
    let both = async || Ok((items(client, "order").await?, items(client, "stock").await?));
    wait_for("the items of stock", TIMEOUT, both, |(order, stock)| order == stock).await.map(drop)
}

/// A record of an item whose schema no registry has.
async fn send_undecodable_item(client: &Client, sku: &str, partition: Option<i32>) -> Result<()> {
    let payload = frame(poison::UNKNOWN_SCHEMA, b"?");
    let record = FutureRecord::to("stock.items").key(sku).payload(&payload);
    let record = FutureRecord { partition, ..record };
    kafka::create_producer(client)?.send(record, TIMEOUT).await.map_err(|(error, _)| error)?;
    Ok(())
}

/// Rebuilds. Kafka or the registry may stall for longer than a rebuild waits for them.
async fn rebuild(client: &Client) -> Result<Value> {
    let is_unavailable = |result: &Result<Value>| {
        result.as_ref().is_err_and(|refusal| refusal.to_string().contains(TOPIC_UNAVAILABLE))
    };
    let url = format!("{}/items/rebuild", client.addresses.admins["order"]);
    let rebuild =
        async || client.send(Method::POST, &url, None, None).await?.accepted_json::<Value>();
    retry_while(TIMEOUT, rebuild, is_unavailable).await
}

/// The message of a rebuild whose topic cannot be read for now.
const TOPIC_UNAVAILABLE: &str = "The topic can't be read now";

/// Rebuilds, and checks how many items were removed, repaired and kept.
async fn assert_rebuilt(client: &Client, counts: [u64; 3]) -> Result<()> {
    let rebuilt = rebuild(client).await?;
    let done = ["removed", "repaired", "kept"].map(|name| rebuilt[name].as_u64());
    ensure!(done == counts.map(Some), "{rebuilt}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_corrupted_read_model_is_rebuilt_from_its_topic_while_orders_go_on() -> Result<()> {
    with_exclusive_fixture(async |Fixture { client, .. }| {
        let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
        let before = items(client, "order").await?;
        ensure!(before.len() > 10 && before == items(client, "stock").await?);
        for corruption in [
            "delete from items where sku in (select sku from items where sku > 'd' order by sku limit 3)",
            // The correct version, and one that stock has not reached: no later event repairs these
            // rows.
            "update items set price_cents = price_cents + 1 where sku = 'wool-cap'",
            "update items set version = 99, name = 'Wrong' where sku = 'ships-biscuit'",
            "insert into items values ('removed', 'Removed', 1, 'EUR', 1)",
        ] {
            sqlx::query(corruption).execute(&mut db).await?;
        }
        let ordering = async {
            for _ in 0..20 {
                client.place_until_accepted(rich_customer(), &basket()).await?;
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
        wait_until_items_equal(client).await?;
        let again = rebuild(client).await?;
        ensure!(again["removed"] == 0 && again["repaired"] == 0, "{again}");
        Ok(())
    })
    .await
}

/// As after a registry was restored without the newest schema: the topic has a record of an item,
/// and it cannot be decoded.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_keeps_an_item_whose_last_record_in_any_partition_is_undecodable() -> Result<()> {
    with_exclusive_fixture(async |Fixture { client, .. }| {
        let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
        client.put_item("unread", "Unread", 1).await?;
        wait_until_items_equal(client).await?;
        for newer in [
            "update items set version = 99 where sku = 'unread'",
            "insert into items values ('unread too', 'Unread too', 1, 'EUR', 1)",
        ] {
            sqlx::query(newer).execute(&mut db).await?;
        }
        for sku in ["unread", "unread too"] {
            send_undecodable_item(client, sku, None).await?;
        }
        assert_rebuilt(client, [0, 0, 2]).await?;

        // If there is no row, a decodable record is better than nothing.
        sqlx::query("delete from items where sku like 'unread%'").execute(&mut db).await?;
        assert_rebuilt(client, [0, 1, 0]).await?;

        // A decodable record after such a record counts again.
        sqlx::query("update items set version = 99 where sku = 'unread'").execute(&mut db).await?;
        client.put_item("unread", "Unread", 2).await?;
        eventually("the newer record to be consumed", TIMEOUT, async || {
            assert_rebuilt(client, [0, 1, 0]).await
        })
        .await?;

        // Records in different partitions, as after partitions were added, have no order.
        for partition in 0..events::stock::StockItem::topic().partitions {
            send_undecodable_item(client, "unread", Some(partition)).await?;
        }
        client.put_item("unread", "Unread", 3).await?;
        wait_until_items_equal(client).await?;
        sqlx::query("update items set version = 99 where sku = 'unread'").execute(&mut db).await?;
        assert_rebuilt(client, [0, 0, 1]).await?;
        sqlx::query("update items set version = 3 where sku = 'unread'").execute(&mut db).await?;
        Ok(())
    })
    .await
}

/// The body of an item, without the headers of an event: to the consumer it is a dead letter.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_adds_no_item_from_a_record_that_is_a_dead_letter() -> Result<()> {
    with_exclusive_fixture(async |Fixture { client, .. }| {
        let topic = events::stock::StockItem::topic();
        let payload = frame(schema_id(client, topic).await?, &valid_body(topic)?);
        let record = FutureRecord::to(topic.name).key("pen").payload(&payload);
        kafka::create_producer(client)?.send(record, TIMEOUT).await.map_err(|(error, _)| error)?;
        let rebuilt = rebuild(client).await?;
        ensure!(rebuilt["undecodable"].as_u64() > Some(0), "{rebuilt}");
        ensure!(items(client, "order").await? == items(client, "stock").await?);
        Ok(())
    })
    .await
}

/// As after the broker lost its disk, or the registry its schemas: the stored items are all there
/// is.
#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_without_readable_items_changes_nothing_and_gives_the_reason() -> Result<()> {
    let (_permit, stack) = own_stack().await?;
    without_unexpected_exits(&stack, async {
        stack.up().await?;
        let client = Client::for_stack(&stack)?;
        let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
        let known = "insert into items values ('known', 'Known', 1, 'EUR', 1)";
        sqlx::query(known).execute(&mut db).await?;
        let refused = async |problem: &str| -> Result<()> {
            let error = rebuild(&client).await.err().context("the rebuild must fail")?;
            ensure!(
                error.to_string().contains(&format!("409 {{\"type\":\"/problems/{problem}\"")),
                "{error}"
            );
            let kept = vec![("known".to_string(), 1, 1)];
            ensure!(items(&client, "order").await? == kept);
            Ok(())
        };
        refused("nothing-published").await?;

        send_undecodable_item(&client, "unread", None).await?;
        refused("topic-undecodable").await
    })
    .await
}

/// The rebuild is blocked in its last step, before it writes the items that it read: at a row that
/// it is about to remove. The consumer, which writes an item now, has to wait for it.
#[tokio::test(flavor = "multi_thread")]
async fn an_item_written_during_the_last_step_of_a_rebuild_is_not_set_back_by_it() -> Result<()> {
    with_exclusive_fixture(async |Fixture { client, .. }| {
        let url = &client.addresses.databases["order"];
        let mut observer = PgConnection::connect(url).await?;
        let mut locker = PgConnection::connect(url).await?;
        let mut writer = PgConnection::connect(url).await?;
        let removed = "insert into items values ('removed', 'Removed', 1, 'EUR', 1)";
        sqlx::query(removed).execute(&mut observer).await?;
        let mut held = locker.begin().await?;
        let hold = "select from items where sku = 'removed' for update";
        sqlx::query(hold).execute(&mut *held).await?;

        let meanwhile = async {
            wait_for_lock_waiters(&mut observer, |waiting| waiting == 1).await?;
            let write = tokio::spawn(async move {
                let newer = "update items set version = version + 1, name = 'Newer'
                             where sku = 'wool-cap'";
                sqlx::query(newer).execute(&mut writer).await
            });
            wait_for_lock_waiters(&mut observer, |waiting| waiting == 2 || write.is_finished())
                .await?;
            held.rollback().await?;
            Ok(write.await??)
        };
        let (rebuilt, written) = tokio::try_join!(rebuild(client), meanwhile)?;
        ensure!(rebuilt["removed"] == 1 && written.rows_affected() == 1, "{rebuilt}");
        let name: String = sqlx::query_scalar("select name from items where sku = 'wool-cap'")
            .fetch_one(&mut observer)
            .await?;
        ensure!(name == "Newer", "the name is {name} again");
        let again = rebuild(client).await?;
        ensure!(again["repaired"] == 1, "{again}");
        Ok(())
    })
    .await
}

/// Waits until this number of sessions of a database waits for locks.
async fn wait_for_lock_waiters(db: &mut PgConnection, enough: impl Fn(i64) -> bool) -> Result<()> {
    eventually("sessions to wait for a lock", TIMEOUT, async || {
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
