//! The stream processor: its sums are those of the orders, although it is killed.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::client::http_client::Client;
use e2e::scenarios::streams;
use e2e::stack_description::stack_description;
use e2e::workload::load;
use e2e::workload::options::Load;
use e2e::workload::seed;
use events::insights;
use launcher::Stack;
use tokio::time::sleep;

use crate::fixture::{DRAIN_TIMEOUT, TIMEOUT, stack_permit, without_unexpected_exits};

/// A short load, one kill, and the sums.
#[tokio::test(flavor = "multi_thread")]
async fn the_sums_are_those_of_the_orders_although_the_stream_processor_is_killed() -> Result<()> {
    let _permit = stack_permit().await?;
    let stack = Stack::ephemeral(&stack_description())?;
    stack.process_streams()?;
    without_unexpected_exits(&stack, async {
        stack.up().await?;
        let client = Client::for_stack(&stack)?;
        seed::run(&client).await?;
        let duration = Duration::from_secs(6);
        let load = Load { rate: 50, duration, drain_timeout: DRAIN_TIMEOUT, ..Load::default() };
        let killing = async {
            sleep(Duration::from_secs(2)).await;
            ensure!(stack.kill(insights::NAME).await?, "it ran");
            sleep(Duration::from_secs(1)).await;
            stack.start(insights::NAME).await
        };
        let (summary, ()) = load::run(&client, &load, killing).await?;
        ensure!(summary.holds() && summary.confirmed > 60, "{}", summary.lines().join("\n"));
        let sums = streams::wait_until_equal(&client, &stack, TIMEOUT).await?;
        ensure!(sums.outcomes["confirmed"] > 60 && !sums.sales.is_empty(), "{sums:?}");
        Ok(())
    })
    .await
}
