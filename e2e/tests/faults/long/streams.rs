//! The stream processor is killed again and again, and everything is published again.

use e2e::admin::republish::{self, RepublishOptions};
use e2e::scenarios::streams;
use events::insights;

use super::*;

/// How long it may take to read every event once more.
const READ_TIMEOUT: Duration = Duration::from_secs(120);

const KILLS: u32 = 3;

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

/// Waits until the group has committed the end of every topic of the orders.
async fn wait_until_streams_read(client: &Client) -> Result<()> {
    eventually("the stream processor to read everything", READ_TIMEOUT, async || {
        let lag = streams::consumer_lag(client).await?;
        ensure!(lag == 0, "{lag} records are not read");
        Ok(())
    })
    .await
}
