//! The memory of the services while they read a backlog of the largest events.

use e2e::scenarios::order_faults;
use faults::database_faults;

use super::*;

const EVENTS: i64 = 1_000;

/// A service above its memory limit would be killed, and again after each start.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_backlog_of_the_largest_events_needs_no_more_memory_than_docker_compose_gives()
-> Result<()> {
    on_ephemeral_stack(read_backlog).await
}

async fn read_backlog(stack: &Stack) -> Result<()> {
    stack.up().await?;
    let check_memory = |service| {
        let bytes = stack.memory_bytes(service)?;
        ensure!(bytes <= MEMORY_BYTES_MAX, "{service} grew to {bytes} bytes");
        Ok(())
    };
    stack.kill("kafka").await?;
    order_faults::publish_largest_events(stack, EVENTS).await?;
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        check_memory("order")?;
        sleep(Duration::from_millis(50)).await;
    }
    stack.start("kafka").await?;
    let within = Instant::now() + DRAIN_TIMEOUT;
    while database_faults::count_dead_letters(stack, "payment", "undecodable").await? < EVENTS
        || database_faults::count_dead_letters(stack, "stock", "undecodable").await? < EVENTS
    {
        SERVICES.into_iter().try_for_each(check_memory)?;
        ensure!(Instant::now() < within, "payment and stock have not read them all");
        sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}
