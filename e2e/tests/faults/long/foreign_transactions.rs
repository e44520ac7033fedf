//! Transactions of foreign producers in our topics, and a log that loses its tail.

use std::collections::BTreeMap;

use e2e::admin::republish::{self, RepublishOptions};
use e2e::client::sample_events::POISON_KEY;
use e2e::metrics::Metrics;
use e2e::scenarios::order_faults::DEADLINE_VARIABLE;
use faults::log_truncation;
use faults::transactional_producer::TransactionalProducer;
use rdkafka::Message;
use sqlx::{Connection, PgConnection};

use super::*;

/// The statistics of librdkafka come every ten seconds.
const LAG_TIMEOUT: Duration = Duration::from_secs(15);

const PAYMENTS: &str = "payments.verified";

async fn set_deadline(stack: &Stack, seconds: u32) -> Result<()> {
    stack.set_environment("order", DEADLINE_VARIABLE, Some(&seconds.to_string()))?;
    restart(stack, "order").await
}

async fn order_metric(
    stack: &Stack,
    client: &Client,
    name: &str,
    topic: &str,
) -> Result<Option<f64>> {
    let metrics = Metrics::fetch(stack, client, "order").await?;
    Ok(metrics.sum_with_label(name, &format!("topic=\"{topic}\"")))
}

/// Waits until order has noticed that so many logs of payments were cut.
async fn wait_until_noticed(stack: &Stack, client: &Client, cuts: f64) -> Result<()> {
    let noticed =
        async || order_metric(stack, client, "consumer_log_truncated_total", PAYMENTS).await;
    wait_for("it is noticed", TIMEOUT, noticed, |it| *it == Some(cuts)).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn another_producers_open_transaction_stops_no_order_and_has_none_cancelled_for_lateness()
-> Result<()> {
    on_ephemeral_stack(open_transactions).await
}

async fn open_transactions(stack: &Stack) -> Result<()> {
    let client = start_and_seed(stack).await?;
    let mut other_producer = TransactionalProducer::new(&stack.kafka_client()?, POISON_KEY)?;
    other_producer.leave_open("orders.created", 0..1)?;
    let orders = place_orders(&client, 15).await?;
    wait_until_confirmed_within(&client, &orders, Duration::from_secs(10)).await?;
    other_producer.abort()?;

    set_deadline(stack, 12).await?;
    other_producer.leave_open(PAYMENTS, 0..3)?;
    let orders = place_orders(&client, 4).await?;
    sleep(Duration::from_secs(25)).await;
    for order in orders {
        let status = client.get_order(order.order_id).await?.status;
        ensure!(status == "confirmed", "payment approved in time, and the order is {status}");
    }
    other_producer.abort()?;
    assert_verified(&client).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn the_markers_of_an_aborted_transaction_are_no_lag_and_keep_no_order_from_its_deadline()
-> Result<()> {
    on_ephemeral_stack(transaction_markers).await
}

async fn transaction_markers(stack: &Stack) -> Result<()> {
    let client = start_and_seed(stack).await?;
    set_deadline(stack, 5).await?;
    let mut other_producer = TransactionalProducer::new(&stack.kafka_client()?, POISON_KEY)?;
    stack.stop("stock").await?;
    other_producer.leave_open("stock.rejected", 0..3)?;
    other_producer.abort()?;
    let aborted = Instant::now();
    let order = client.place_until_accepted(rich_customer(), &basket()).await?;
    let is_late = |it: &Order| it.status == "cancelled" && it.reason.as_deref() == Some("deadline");
    wait_until_each(&client, &[order], "it is cancelled", is_late).await?;
    tokio::time::sleep_until(aborted + LAG_TIMEOUT).await;
    let lag = order_metric(stack, &client, "consumer_lag", "stock.rejected").await?;
    ensure!(lag == Some(0.0), "{lag:?}");
    let read = order_metric(stack, &client, "consumer_partitions", "stock.rejected").await?;
    ensure!(read == Some(3.0), "{read:?}");
    stack.start("stock").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_truncated_log_is_detected_and_what_is_written_there_again_is_read() -> Result<()> {
    on_ephemeral_stack(truncated_log).await
}

async fn truncated_log(stack: &Stack) -> Result<()> {
    let client = start_and_seed(stack).await?;
    for _ in 0..5 {
        confirm_orders(&client, 12).await?;
    }
    for (cuts, partition, order_reads) in [(1.0, 0, false), (2.0, 1, true)] {
        // Payment may respond only after the log is truncated.
        stack.stop("payment").await?;
        let orders = place_orders(&client, 30).await?;
        sleep(Duration::from_secs(3)).await;
        if !order_reads {
            stack.stop("order").await?;
        }
        stack.kill("kafka").await?;
        log_truncation::truncate(stack, PAYMENTS, partition, 4)?;
        stack.start("kafka").await?;
        stack.start("payment").await?;
        if !order_reads {
            // By then payment has responded to all of them.
            sleep(Duration::from_secs(8)).await;
            stack.start("order").await?;
        }
        wait_until_confirmed_within(&client, &orders, TIMEOUT).await.with_context(|| {
            format!("partition {partition}, read while it was cut: {order_reads}")
        })?;
        wait_until_noticed(stack, &client, cuts).await?;
    }
    let log = std::fs::read_to_string(stack.log_file("order")?)?;
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("was truncated")).collect();
    ensure!(
        lines.len() == 2 && lines.iter().all(|line| line.contains("ERROR")),
        "{}",
        lines.join("\n")
    );
    Ok(())
}

/// What a client has read belongs to the log of before. The records below the truncation are in the topic as they were,
/// and the service has not handled them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn what_was_read_and_not_handled_before_its_log_was_truncated_is_read_again() -> Result<()> {
    on_ephemeral_stack(async |stack| {
        const PARTITION: i32 = 0;
        let client = start_and_seed(stack).await?;
        confirm_orders(&client, 12).await?;
        let mut db = PgConnection::connect(&client.addresses.databases["order"]).await?;
        let mut tx = db.begin().await?;
        sqlx::query("lock table chassis.inbox in access exclusive mode").execute(&mut *tx).await?;
        let mut orders = Vec::new();
        for _ in 0..30 {
            orders.extend(place_orders(&client, 1).await?);
        }
        // Order reads the answers of payment meanwhile, and cannot handle them.
        sleep(Duration::from_secs(3)).await;
        stack.kill("kafka").await?;
        log_truncation::truncate(stack, PAYMENTS, PARTITION, 2)?;
        stack.start("kafka").await?;
        let there = eventually("Kafka to lead", TIMEOUT, async || read_keys(&client).await).await?;
        let partition_of = |order: &Order| there.get(order.order_id.to_string().as_bytes());
        let (kept, cut): (Vec<Order>, Vec<Order>) =
            orders.into_iter().partition(|order| partition_of(order).is_some());
        let below = kept.iter().filter(|order| partition_of(order) == Some(&PARTITION)).count();
        ensure!(below > 0 && !cut.is_empty(), "{below} below the truncation, {} above", cut.len());

        // The first of their answers in that partition lies where the log was cut. Keys spread over three partitions.
        let later = place_orders(&client, 40).await?;
        wait_until_noticed(stack, &client, 1.0).await?;
        tx.rollback().await?;
        wait_until_confirmed(&client, &kept).await.context("below the truncation")?;
        wait_until_confirmed(&client, &later).await.context("after it")?;

        // Kafka has lost the others, and their publisher has not.
        let payment = RepublishOptions { service: Some("payment".into()), ..Default::default() };
        republish::run(stack, &payment).await?;
        wait_until_confirmed(&client, &cut).await.context("above the truncation")?;
        assert_verified(&client).await
    })
    .await
}

/// The partition of each key in the topic of verified payments.
async fn read_keys(client: &Client) -> Result<BTreeMap<Vec<u8>, i32>> {
    let settings = client.addresses.kafka.clone();
    let topic =
        saga_topics().iter().find(|topic| topic.name == PAYMENTS).context("a declared topic")?;
    let read = move || {
        let mut keys = BTreeMap::new();
        checker::read_topic(&settings, topic, |position, message| {
            keys.insert(message.key().unwrap_or_default().to_vec(), position.partition);
            Ok(())
        })?;
        Ok(keys)
    };
    tokio::task::spawn_blocking(read).await?
}
