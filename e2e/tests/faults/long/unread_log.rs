//! A log that nothing reads: lines are lost, and nothing else.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Command;

use chassis::event::Event;
use e2e::client::kafka::create_producer;
use e2e::client::sample_events::{POISON_KEY, valid_headers};
use e2e::metrics::Metrics;
use events::orders::OrderCreated;
use rdkafka::producer::FutureRecord;
use reqwest::Method;

use super::*;

/// Undecodable records, each of which is a line at ERROR: more than a pipe holds, and more than the buffer holds. In
/// all, fewer than pause the consumer.
const FULL_PIPE: usize = 600;
const FULL_BUFFER: usize = 8_000;

const CONFIRMED_AFTER_MAX: Duration = Duration::from_secs(10);

/// `SHUTDOWN_TIMEOUT_SECONDS`, and 5 s.
const STOPPED_AFTER_MAX: Duration = Duration::from_secs(25);

/// What the log says once it is read again.
const REPORT: &str = "the log was not read in time";

/// A pipe in the place of a component's log, which is read only when the test reads it.
struct LogPipe {
    path: PathBuf,
    pipe: File,
}

impl LogPipe {
    fn install(stack: &Stack, component: &str) -> Result<LogPipe> {
        let path = stack.log_file(component)?;
        fs::rename(&path, path.with_extension("log.before"))?;
        ensure!(Command::new("mkfifo").arg(&path).status()?.success(), "no pipe");
        // With both of its ends, so that neither this process nor the component waits for the other one.
        let pipe = File::options().read(true).write(true).open(&path)?;
        Ok(LogPipe { path, pipe })
    }

    /// Reads lines up to the one with this text, which it returns.
    async fn read_up_to(&self, text: &'static str) -> Result<String> {
        let lines = BufReader::new(self.pipe.try_clone()?).lines();
        let line = tokio::task::spawn_blocking(move || {
            lines.map_while(Result::ok).find(|line| line.contains(text))
        });
        let line = tokio::time::timeout(TIMEOUT, line).await.context("no such line")?;
        line?.context("the end of the log")
    }

    fn remove(self) -> Result<()> {
        fs::remove_file(&self.path)?;
        Ok(fs::rename(self.path.with_extension("log.before"), &self.path)?)
    }
}

async fn produce_undecodable(client: &Client, records: usize) -> Result<()> {
    let producer = create_producer(client)?;
    let sent = (0..records).map(|_| {
        let record =
            FutureRecord::to(OrderCreated::topic().name).key(POISON_KEY).payload(b"\x07no event");
        producer.send(record.headers(valid_headers(OrderCreated::topic(), Uuid::now_v7())), TIMEOUT)
    });
    try_join_all(sent).await.map_err(|(error, _)| error)?;
    Ok(())
}

/// Waits until payment has lost more than `before` lines of its log. Returns how many.
async fn wait_for_losses(stack: &Stack, client: &Client, before: f64) -> Result<f64> {
    let lost = async || {
        let metrics = Metrics::fetch(stack, client, "payment").await?;
        metrics.sum("log_lines_lost_total").context("not counted")
    };
    wait_for("lines of the log to be lost", TIMEOUT, lost, |lost| *lost > before).await
}

async fn assert_order_is_confirmed(stack: &Stack, client: &Client) -> Result<()> {
    let placed = place_orders(client, 1).await?;
    wait_until_confirmed_within(client, &placed, CONFIRMED_AFTER_MAX).await?;
    for path in ["livez", "readyz"] {
        let url = format!("{}/{path}", stack.probe_url("payment")?);
        let answer = client.send(Method::GET, &url, None, None).await?;
        ensure!(answer.status == 200, "{path}: {answer}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_log_that_nothing_reads_costs_its_lines_and_no_order_probe_or_stop() -> Result<()> {
    on_ephemeral_stack(async |stack| {
        let client = start_and_seed(stack).await?;
        stack.stop_gracefully("payment").await?;
        let pipe = LogPipe::install(stack, "payment")?;
        let tested = with_unread_log(stack, &client, &pipe).await;
        stack.kill("payment").await?;
        pipe.remove()?;
        tested?;
        stack.up().await?;
        assert_verified(&client).await
    })
    .await
}

async fn with_unread_log(stack: &Stack, client: &Client, pipe: &LogPipe) -> Result<()> {
    stack.start("payment").await?;
    produce_undecodable(client, FULL_PIPE).await?;
    assert_order_is_confirmed(stack, client).await?;
    produce_undecodable(client, FULL_BUFFER).await?;
    let lost = wait_for_losses(stack, client, 0.0).await?;
    assert_order_is_confirmed(stack, client).await?;
    let report = pipe.read_up_to(REPORT).await?;
    ensure!(report.contains("WARN"), "{report}");

    produce_undecodable(client, FULL_BUFFER).await?;
    wait_for_losses(stack, client, lost).await?;
    let stopped_after = stack.stop_gracefully("payment").await?;
    ensure!(stopped_after < STOPPED_AFTER_MAX, "{stopped_after:?}");
    Ok(())
}
