//! The connectors of the reporting database are stopped, killed and cut off from the registry, and its rows are those of
//! the orders.

use checker::kafka::create_consumer;
use e2e::admin::reporting;
use e2e::admin::republish::{self, RepublishOptions};
use e2e::scenarios::{reporting as rows, streams};
use events::connect::DEAD_LETTERS;
use events::orders;
use rdkafka::consumer::Consumer;
use rdkafka::producer::FutureRecord;
use sqlx::{Connection, PgConnection};

use super::*;

const CONNECT: &str = "connect";

/// How long the connectors may take to write what they missed.
const WRITE_TIMEOUT: Duration = Duration::from_secs(120);

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
        let (low, high) = consumer.fetch_watermarks(DEAD_LETTERS.name, 0, TIMEOUT)?;
        Ok(high - low)
    };
    tokio::task::spawn_blocking(count).await?
}

async fn a_bad_record_is_set_aside_and_the_next_one_is_written(
    stack: &Stack,
    client: &Client,
) -> Result<()> {
    let record = FutureRecord::to(orders::CONFIRMED.name).key("bad").payload("no event");
    let sent = kafka::create_producer(client)?.send(record, TIMEOUT).await;
    sent.map_err(|(error, _)| error)?;
    wait_until_confirmed(client, &place_orders(client, 20).await?).await?;
    rows::wait_until_equal(client, stack, WRITE_TIMEOUT).await?;
    eventually("the record to be set aside", WRITE_TIMEOUT, async || {
        let letters = dead_letters(client).await?;
        ensure!(letters == 1, "{letters} records are set aside");
        Ok(())
    })
    .await
}
