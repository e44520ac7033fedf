//! The stream processor: its sums are those of the orders, although it is killed.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::scenarios::streams;
use e2e::stack_description::with_console;
use events::insights;
use launcher::{Stack, eventually};
use tokio::time::sleep;

use crate::fixture::*;

/// A short load, one kill, and the sums.
#[tokio::test(flavor = "multi_thread")]
async fn the_sums_are_those_of_the_orders_although_the_stream_processor_is_killed() -> Result<()> {
    let _permit = stack_permit().await?;
    let stack = Stack::ephemeral(&with_console())?;
    stack.process_streams()?;
    without_unexpected_exits(&stack, async {
        let client = start_and_seed(&stack).await?;
        let killing = async {
            sleep(Duration::from_secs(2)).await;
            ensure!(stack.kill(insights::NAME).await?, "it ran");
            sleep(Duration::from_secs(1)).await;
            stack.start(insights::NAME).await
        };
        let (summary, ()) = under_load(&client, 50, 6, killing).await?;
        ensure!(summary.confirmed > 60, "{}", summary.lines().join("\n"));
        let sums = streams::wait_until_equal(&client, &stack, TIMEOUT).await?;
        ensure!(sums.outcomes["confirmed"] > 60 && !sums.sales.is_empty(), "{sums:?}");
        assert_control_room_draws_them(&stack, true).await?;
        stack.kill(insights::NAME).await?;
        assert_control_room_draws_them(&stack, false).await
    })
    .await
}

/// The overview has charts of the sums while the stream processor answers, and nothing else changes without it.
async fn assert_control_room_draws_them(stack: &Stack, is_drawn: bool) -> Result<()> {
    let url = stack.console_url()?;
    eventually("the control room to follow the stream processor", TIMEOUT, async || {
        let page = reqwest::get(&url).await?.error_for_status()?.text().await?;
        ensure!(page.contains("Orders a minute"), "{page}");
        for drawn in
            ["Revenue in EUR by item and minute;", "Units by item and minute;", "% now", "; mean "]
        {
            ensure!(page.contains(drawn) == is_drawn, "{drawn}");
        }
        Ok(())
    })
    .await
}
