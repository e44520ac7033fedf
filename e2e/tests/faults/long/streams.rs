//! The stream processor is killed repeatedly, everything is republished, and it receives unreadable records.

use chassis::event::Event;
use chassis::event::avro::frame;
use e2e::admin::republish::{self, RepublishOptions};
use e2e::client::sample_events::POISON_KEY;
use e2e::scenarios::streams;
use events::insights;
use events::orders::OrderConfirmed;
use events::stock::StockItem;
use faults::registry_gateway::RegistryGateway;
use launcher::ComponentState;
use rdkafka::message::ToBytes;
use rdkafka::producer::FutureRecord;

use super::*;

/// How long it may take to read every event once more.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

const KILLS: u32 = 3;

/// How long the sums may take to have orders that come behind records that cannot be read.
const SUMMED_WITHIN: Duration = Duration::from_secs(20);

/// An id that the registry refuses, and one for which it fails.
const REFUSED_ID: u32 = 777;
const FAILING_ID: u32 = 778;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn three_kills_and_a_republication_of_everything_change_no_sum() -> Result<()> {
    on_ephemeral_stack(async |stack| {
        stack.process_streams()?;
        let client = start_and_seed(stack).await?;
        under_load_without_errors(&client, 100, 30, async {
            for _ in 0..KILLS {
                sleep(Duration::from_secs(4)).await;
                ensure!(stack.kill(insights::NAME).await?, "it ran");
                sleep(Duration::from_secs(1)).await;
                stack.start(insights::NAME).await?;
            }
            Ok(())
        })
        .await?;
        let before = streams::wait_until_equal(&client, stack, READ_TIMEOUT).await?;
        let republished = republish::run(stack, &RepublishOptions::default()).await?;
        ensure!(republished.iter().all(|(_, events)| *events > 0), "{republished:?}");
        // Also while it reads what was published again.
        stack.kill(insights::NAME).await?;
        stack.start(insights::NAME).await?;
        wait_until_streams_read(&client).await?;
        let after = streams::wait_until_equal(&client, stack, READ_TIMEOUT).await?;
        ensure!(after == before, "{before:?} became {after:?}");
        assert_verified(&client).await
    })
    .await
}

/// A global table would restore the bytes of the item, and each sale of it would end a thread.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn records_that_cannot_be_read_delay_no_sum_also_after_a_start_without_stores() -> Result<()>
{
    on_ephemeral_stack(async |stack| {
        stack.process_streams()?;
        let gateway = RegistryGateway::start(&stack.registry_url()?).await?;
        gateway.reject(&format!("/schemas/ids/{REFUSED_ID}"), 403, 40301);
        let client = start_and_seed(stack).await?;
        assert_summed(stack, &client, SUMMED_WITHIN).await?;
        for line in basket() {
            send(
                &client,
                FutureRecord::to(StockItem::topic().name)
                    .key(line.sku.as_str())
                    .payload("no event"),
            )
            .await?;
        }
        send(&client, FutureRecord::<str, str>::to(StockItem::topic().name).key("wool-cap"))
            .await?;
        let refused = frame(REFUSED_ID, b"abc");
        for partition in 0..OrderConfirmed::topic().partitions {
            let record = FutureRecord::to(OrderConfirmed::topic().name).key(POISON_KEY);
            send(&client, record.payload(&refused).partition(partition)).await?;
        }
        stack.stop(insights::NAME).await?;
        stack.set_environment(insights::NAME, "STATE_DIRECTORY", Some("another"))?;
        stack.set_environment(insights::NAME, "SCHEMA_REGISTRY_URL", Some(&gateway.url()))?;
        stack.start(insights::NAME).await?;
        assert_summed(stack, &client, SUMMED_WITHIN).await?;
        assert_unready_while_it_waits(stack, &client, &gateway).await?;
        assert_unready_while_threads_fail(stack, &client).await
    })
    .await
}

/// An error of the registry may pass, so the id is waited for, and readiness shows it.
async fn assert_unready_while_it_waits(
    stack: &Stack,
    client: &Client,
    gateway: &RegistryGateway,
) -> Result<()> {
    let path = format!("/schemas/ids/{FAILING_ID}");
    gateway.reject(&path, 500, 50001);
    let record = FutureRecord::to(OrderConfirmed::topic().name).key(POISON_KEY);
    send(client, record.payload(&frame(FAILING_ID, b"abc")).partition(0)).await?;
    wait_until_state(stack, ComponentState::Starting).await?;
    gateway.forward_all();
    gateway.reject(&path, 403, 40301);
    wait_until_state(stack, ComponentState::Ready).await?;
    assert_summed(stack, client, SUMMED_WITHIN).await
}

/// A sum that cannot be read ends every thread. Nothing but a reset mends that.
async fn assert_unready_while_threads_fail(stack: &Stack, client: &Client) -> Result<()> {
    stack.stop(insights::NAME).await?;
    let changelog = "insights-outcomes-total-changelog";
    for partition in 0..OrderConfirmed::topic().partitions {
        let record = FutureRecord::to(changelog).key("confirmed").payload("no sum at all");
        send(client, record.partition(partition)).await?;
    }
    stack.set_environment(insights::NAME, "STATE_DIRECTORY", Some("a third"))?;
    stack.start(insights::NAME).await?;
    confirm_orders(client, 6).await?;
    wait_until_state(stack, ComponentState::Starting).await?;
    stack.kill(insights::NAME).await?;
    Ok(())
}

async fn wait_until_state(stack: &Stack, expected: ComponentState) -> Result<()> {
    eventually("the state of the stream processor", SUMMED_WITHIN, async || {
        let status = stack.status().await?;
        let own = status.iter().find(|component| component.name == insights::NAME);
        let state = own.context("the stack has no stream processor")?.state;
        ensure!(state == expected, "it is {state:?}, and not {expected:?}");
        Ok(())
    })
    .await
}

/// Places orders, and waits until the sums have them.
async fn assert_summed(stack: &Stack, client: &Client, within: Duration) -> Result<()> {
    confirm_orders(client, 6).await?;
    streams::wait_until_equal(client, stack, within).await?;
    Ok(())
}

async fn send(client: &Client, record: FutureRecord<'_, str, impl ToBytes + ?Sized>) -> Result<()> {
    let sent = kafka::create_producer(client)?.send(record, TIMEOUT).await;
    sent.map_err(|(error, _)| error)?;
    Ok(())
}

/// Waits until the group has committed the end of every topic of the orders.
async fn wait_until_streams_read(client: &Client) -> Result<()> {
    eventually("the stream processor to read everything", READ_TIMEOUT, async || {
        let lag = streams::consumer_lag(client).await?;
        ensure!(lag == 0, "{lag} records are not read");
        Ok(())
    })
    .await
}
