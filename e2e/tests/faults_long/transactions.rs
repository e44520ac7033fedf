//! Transactions of other producers in our topics, and a log that loses its tail.

use e2e::faults::log_tail;
use e2e::faults::transactional_producer::TransactionalProducer;
use e2e::metrics::Metrics;
use e2e::sabotage::DEADLINE;

use super::*;

/// Statistics come every ten seconds.
const LAG_KNOWN_WITHIN: Duration = Duration::from_secs(15);

async fn with_deadline(stack: &Stack, seconds: u32) -> Result<()> {
    stack.set_environment("order", DEADLINE, Some(&seconds.to_string()))?;
    stack.stop("order").await?;
    stack.start("order").await
}

async fn all_end_within(client: &Client, orders: &[Order], within: Duration) -> Result<()> {
    let deadline = Instant::now() + within;
    for order in orders {
        let ended = client.ended(order.order_id, deadline - Instant::now()).await?;
        ensure!(ended.status == "confirmed", "{ended:?}");
    }
    Ok(())
}

async fn of_order(stack: &Stack, client: &Client, name: &str, topic: &str) -> Result<Option<f64>> {
    let metrics = Metrics::of(stack, client, "order").await?;
    Ok(metrics.labelled(name, &format!("topic=\"{topic}\"")))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_strangers_open_transaction_stops_no_order_and_has_none_cancelled_for_lateness()
-> Result<()> {
    on_its_own(open_transactions).await
}

async fn open_transactions(stack: &Stack) -> Result<()> {
    let client = own_stack(stack).await?;
    let mut stranger = TransactionalProducer::new(&stack.kafka_bootstrap()?)?;
    stranger.leave_open("orders.created", 0..1)?;
    all_end_within(&client, &place_all(&client, 15).await?, Duration::from_secs(10)).await?;
    stranger.abort()?;

    with_deadline(stack, 12).await?;
    stranger.leave_open("payments.verified", 0..3)?;
    let orders = place_all(&client, 4).await?;
    sleep(Duration::from_secs(25)).await;
    for order in orders {
        let status = client.order(order.order_id).await?.status;
        ensure!(status == "confirmed", "payment said yes in time, and the order is {status}");
    }
    stranger.abort()?;
    verified(&client).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn the_marks_of_an_aborted_transaction_are_no_lag_and_keep_no_order_from_its_deadline()
-> Result<()> {
    on_its_own(marks).await
}

async fn marks(stack: &Stack) -> Result<()> {
    let client = own_stack(stack).await?;
    with_deadline(stack, 5).await?;
    let mut stranger = TransactionalProducer::new(&stack.kafka_bootstrap()?)?;
    stack.stop("stock").await?;
    stranger.leave_open("stock.rejected", 0..3)?;
    stranger.abort()?;
    let aborted = Instant::now();
    let order = client.placed(rich(), &basket()).await?;
    let is_cancelled = async || {
        let Order { status, reason, .. } = client.order(order.order_id).await?;
        ensure!(status == "cancelled" && reason.as_deref() == Some("deadline"), "it is {status}");
        Ok(())
    };
    eventually("it is cancelled", SOON, is_cancelled).await?;
    tokio::time::sleep_until(aborted + LAG_KNOWN_WITHIN).await;
    let lag = of_order(stack, &client, "consumer_lag", "stock.rejected").await?;
    ensure!(lag == Some(0.0), "{lag:?}");
    let read = of_order(stack, &client, "consumer_partitions", "stock.rejected").await?;
    ensure!(read == Some(3.0), "{read:?}");
    stack.start("stock").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_log_that_lost_its_tail_is_noticed_and_what_is_written_there_anew_is_read() -> Result<()>
{
    on_its_own(lost_tail).await
}

async fn lost_tail(stack: &Stack) -> Result<()> {
    let client = own_stack(stack).await?;
    for _ in 0..5 {
        all_end(&client, &place_all(&client, 12).await?).await?;
    }
    for (cuts, partition, order_reads) in [(1.0, 0, false), (2.0, 1, true)] {
        // Answered only once the log is cut.
        stack.stop("payment").await?;
        let orders = place_all(&client, 30).await?;
        sleep(Duration::from_secs(3)).await;
        if !order_reads {
            stack.stop("order").await?;
        }
        stack.kill("kafka").await?;
        log_tail::cut(stack, "payments.verified", partition, 4)?;
        stack.start("kafka").await?;
        stack.start("payment").await?;
        if !order_reads {
            // Payment has answered all of them by then.
            sleep(Duration::from_secs(8)).await;
            stack.start("order").await?;
        }
        all_end_within(&client, &orders, SOON).await.with_context(|| {
            format!("partition {partition}, read while it was cut: {order_reads}")
        })?;
        let noticed = async || {
            let name = "consumer_log_truncated_total";
            let noticed = of_order(stack, &client, name, "payments.verified").await?;
            ensure!(noticed == Some(cuts), "{noticed:?}");
            Ok(())
        };
        eventually("it is noticed", SOON, noticed).await?;
    }
    let log = std::fs::read_to_string(stack.log_file("order")?)?;
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("has lost its tail")).collect();
    ensure!(
        lines.len() == 2 && lines.iter().all(|line| line.contains("ERROR")),
        "{}",
        lines.join("\n")
    );
    Ok(())
}
