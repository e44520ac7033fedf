//! The connectors of the reporting database are stopped, killed and cut off from the registry, and its rows are those of
//! the orders.

use chassis::event::Event;
use chassis::event::avro::frame;
use checker::kafka::{create_consumer, watermarks};
use e2e::admin::reporting;
use e2e::admin::republish::{self, RepublishOptions};
use e2e::client::sample_events;
use e2e::scenarios::{reporting as rows, streams};
use e2e::workload::seed;
use events::connect::DEAD_LETTERS;
use events::orders::OrderConfirmed;
use rdkafka::producer::FutureRecord;
use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};

use super::*;

const CONNECT: &str = "connect";

/// How long the connectors may take to write what they missed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(120);

/// How long rows may wait for bad ones before them. The sink starts again for each bad row.
const BAD_ROWS_TIMEOUT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes two minutes: make faults"]
async fn the_rows_of_the_reporting_database_are_those_of_the_orders_after_stops_and_kills()
-> Result<()> {
    on_ephemeral_stack(async |stack| {
        stack.process_streams()?;
        reporting::add(stack).await?;
        let client = start_and_seed(stack).await?;
        // A connector that exists is changed, and not a second one made.
        reporting::apply(stack).await?;
        reporting::apply(stack).await?;
        under_load_without_errors(&client, 100, 40, async {
            sleep(Duration::from_secs(4)).await;
            ensure!(stack.kill(CONNECT).await?, "it ran");
            sleep(Duration::from_secs(3)).await;
            stack.start(CONNECT).await?;
            sleep(Duration::from_secs(12)).await;
            stack.stop(CONNECT).await?;
            // It comes back without a registry, and so without a single schema.
            stack.kill("registry").await?;
            stack.start(CONNECT).await?;
            sleep(Duration::from_secs(8)).await;
            stack.start("registry").await
        })
        .await?;
        let before = rows::wait_until_equal(&client, stack, WRITE_TIMEOUT).await?;
        ensure!(before.len() > 1_000, "only {} orders were confirmed", before.len());
        republish::run(stack, &RepublishOptions::default()).await?;
        let sums = streams::wait_until_equal(&client, stack, WRITE_TIMEOUT).await?;
        wait_until_sums_equal(stack, &sums).await?;
        let after = rows::wait_until_equal(&client, stack, WRITE_TIMEOUT).await?;
        ensure!(after == before, "a republication has changed a row");
        let letters = dead_letters(&client).await?;
        ensure!(letters == 0, "{letters} records were given up: an outage is no fault of a record");
        rows::assert_no_customer(stack, &seed::CUSTOMERS.map(|it| it.customer_id)).await?;
        rows::assert_rights(stack).await?;
        assert_verified(&client).await?;
        assert_report(stack, before.len()).await?;
        a_bad_record_is_set_aside_and_the_next_one_is_written(stack, &client).await
    })
    .await
}

/// The schema takes what the table refuses. No row of another order waits, and each such record is a dead letter.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_record_that_the_table_refuses_is_set_aside_and_the_rows_of_all_others_are_written()
-> Result<()> {
    on_ephemeral_stack(async |stack| {
        reporting::add(stack).await?;
        let client = start_and_seed(stack).await?;
        reporting::apply(stack).await?;
        let spoiled = [
            ("order_id", json!("not-a-uuid")),
            ("currency", json!("E\0R")),
            // Two hundred thousand years before Christ, which Postgres has no time for.
            ("occurred_at", json!(-6_400_000_000_000_000_000_i64)),
        ];
        for (field, value) in &spoiled {
            produce_confirmed(&client, field, value).await?;
        }
        confirm_orders(&client, 6).await?;
        rows::wait_until_equal(&client, stack, BAD_ROWS_TIMEOUT).await?;
        wait_until_set_aside(&client, spoiled.len() as i64).await?;
        // What was set aside is not read again.
        restart(stack, CONNECT).await?;
        confirm_orders(&client, 6).await?;
        rows::wait_until_equal(&client, stack, WRITE_TIMEOUT).await?;
        let letters = dead_letters(&client).await?;
        ensure!(letters == spoiled.len() as i64, "{letters} records are set aside");
        Ok(())
    })
    .await
}

/// The sink without our task stops at such a record. An operator steps over it by the commands of docs/reporting.md.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn an_operator_steps_over_a_record_that_stops_a_connector() -> Result<()> {
    on_ephemeral_stack(async |stack| {
        reporting::add(stack).await?;
        let client = start_and_seed(stack).await?;
        reporting::apply(stack).await?;
        let worker = stack.connect_url()?.context("the stack has no Kafka Connect")?;
        let connector = format!("{worker}/connectors/reporting-orders");
        let mut settings: Value = client.get_url(&format!("{connector}/config")).await?;
        settings["connector.class"] = json!("io.debezium.connector.jdbc.JdbcSinkConnector");
        change(Method::PUT, &format!("{connector}/config"), Some(&settings)).await?;
        let offset = produce_confirmed(&client, "order_id", &json!("not-a-uuid")).await?;
        confirm_orders(&client, 6).await?;
        wait_until_state(&client, &connector, "/tasks/0/state", "FAILED").await?;
        change(Method::PUT, &format!("{connector}/stop"), None).await?;
        wait_until_state(&client, &connector, "/connector/state", "STOPPED").await?;
        let partition =
            json!({ "kafka_topic": OrderConfirmed::topic().name, "kafka_partition": 0 });
        let behind = json!({ "partition": partition, "offset": { "kafka_offset": offset + 1 } });
        let behind = json!({ "offsets": [behind] });
        let url = format!("{connector}/offsets");
        let step_over = async || change(Method::PATCH, &url, Some(&behind)).await;
        eventually("the offset to be changed", WRITE_TIMEOUT, step_over).await?;
        change(Method::PUT, &format!("{connector}/resume"), None).await?;
        rows::wait_until_equal(&client, stack, WRITE_TIMEOUT).await?;
        Ok(())
    })
    .await
}

async fn change(method: Method, url: &str, body: Option<&Value>) -> Result<()> {
    let mut request = reqwest::Client::new().request(method, url);
    if let Some(body) = body {
        request = request.json(body);
    }
    request.send().await?.error_for_status()?;
    Ok(())
}

async fn wait_until_state(
    client: &Client,
    connector: &str,
    path: &str,
    expected: &str,
) -> Result<()> {
    let url = format!("{connector}/status");
    let status = async || client.get_url::<Value>(&url).await;
    let is_there = |status: &Value| status.pointer(path) == Some(&json!(expected));
    wait_for("the state of the connector", WRITE_TIMEOUT, status, is_there).await.map(drop)
}

/// An event of a foreign order, of which one field has this value.
async fn produce_confirmed(client: &Client, field: &str, value: &Value) -> Result<i64> {
    let topic = OrderConfirmed::topic();
    let body = sample_events::body_with(topic, field, value.clone())?;
    let payload = frame(sample_events::schema_id(client, topic).await?, &body);
    let record = FutureRecord::to(topic.name).key(sample_events::POISON_KEY).payload(&payload);
    let sent = kafka::create_producer(client)?.send(record.partition(0), TIMEOUT).await;
    Ok(sent.map_err(|(error, _)| error)?.offset)
}

async fn wait_until_set_aside(client: &Client, expected: i64) -> Result<()> {
    let letters = async || dead_letters(client).await;
    wait_for("the records to be set aside", WRITE_TIMEOUT, letters, |it| *it == expected).await?;
    Ok(())
}

/// The report counts every confirmed order.
async fn assert_report(stack: &Stack, confirmed: usize) -> Result<()> {
    let table = reporting::report(stack).await?;
    let position = table[0].iter().position(|name| name == "confirmed").context("no column")?;
    let counts = table[1..].iter().map(|row| row[position].parse::<usize>());
    let sum: usize = counts.sum::<Result<_, _>>()?;
    ensure!(sum == confirmed, "{table:?}, and {confirmed} orders");
    reporting::print(&table);
    Ok(())
}

/// Nothing is late in so short a load, so the minutes together are the books.
async fn wait_until_sums_equal(stack: &Stack, sums: &streams::Sums) -> Result<()> {
    let url = stack.further_database(reporting::BESIDE, reporting::NAME).await?.owner_url;
    eventually("the sums to be those of the stream processor", WRITE_TIMEOUT, async || {
        let mut db = PgConnection::connect(&url).await?;
        let outcomes: Vec<(String, i64)> = sqlx::query_as(
            "select outcome, sum(orders)::bigint from reporting.order_outcomes group by outcome",
        )
        .fetch_all(&mut db)
        .await?;
        let sales: Vec<(String, i64, i64, i64)> = sqlx::query_as(
            "select currency || ' ' || sku, sum(orders)::bigint, sum(units)::bigint, sum(revenue_cents)::bigint
             from reporting.item_sales group by 1",
        )
        .fetch_all(&mut db)
        .await?;
        db.close().await?;
        let sales = sales.into_iter().map(|(key, orders, units, revenue_cents)| {
            (key, streams::Sale { orders, units, revenue_cents })
        });
        let written =
            streams::Sums { sales: sales.collect(), outcomes: outcomes.into_iter().collect() };
        ensure!(written == *sums, "{written:?} are written, and the sums are {sums:?}");
        Ok(())
    })
    .await
}

/// The number of records that the connectors gave up.
async fn dead_letters(client: &Client) -> Result<i64> {
    let settings = client.addresses.kafka.clone();
    let count = move || {
        let consumer = create_consumer(&settings, "dead-letters-count")?;
        let watermarks = watermarks(&consumer, DEAD_LETTERS.name)?;
        Ok(watermarks.iter().map(|(low, high)| high - low).sum())
    };
    tokio::task::spawn_blocking(count).await?
}

async fn a_bad_record_is_set_aside_and_the_next_one_is_written(
    stack: &Stack,
    client: &Client,
) -> Result<()> {
    let record = FutureRecord::to(OrderConfirmed::topic().name).key("bad").payload("no event");
    let sent = kafka::create_producer(client)?.send(record, TIMEOUT).await;
    sent.map_err(|(error, _)| error)?;
    confirm_orders(client, 20).await?;
    rows::wait_until_equal(client, stack, WRITE_TIMEOUT).await?;
    wait_until_set_aside(client, 1).await
}
