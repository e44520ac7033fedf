//! A service with a large backlog. Its memory must stay within the limit of its container, or the
//! container would be killed while it catches up, again after each start.

use e2e::scenarios::redelivery;
use e2e::stack_description::checkout;

use super::*;

const SERVICE: &str = "order";

/// Far more than a service with bounded prefetch holds: 50 MB then. Without the bound, it would be
/// 120 to 175 MB.
const BACKLOG_RECORDS_MIN: i64 = 120_000;

const MEMORY_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The share of the limit in docker compose that a service may use. A container is charged for more
/// than the measured memory: files that were read, and kernel memory of its connections.
const MEMORY_SHARE_MAX: f64 = 0.75;

/// The memory limit of a service in docker compose.
fn memory_limit() -> Result<u64> {
    let compose = std::fs::read_to_string(checkout().join("docker-compose.yml"))?;
    let service = compose.split_once("x-hardened:").context("what services share")?.1;
    let limit = service.split_once("mem_limit: ").context("a limit")?.1;
    let megabytes = limit.split_once("m\n").context("a limit in megabytes")?.0;
    Ok(megabytes.parse::<u64>()? * 1024 * 1024)
}

/// F29.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_service_that_reads_everything_again_stays_within_the_memory_of_its_container()
-> Result<()> {
    on_ephemeral_stack(catch_up).await
}

async fn catch_up(stack: &Stack) -> Result<()> {
    let client = start_and_seed(stack).await?;
    under_load_without_errors(&client, 100, 10, async { Ok(()) }).await?;
    stack.stop(SERVICE).await?;
    redelivery::reset_offsets(&client, SERVICE, i64::MAX).await?;
    let mut backlog = redelivery::consumer_lag(&client, SERVICE).await?;
    while backlog < BACKLOG_RECORDS_MIN {
        redelivery::produce_again(&client, i64::MAX, &mut rand::rng()).await?;
        backlog = redelivery::consumer_lag(&client, SERVICE).await?;
    }
    // The other subscribers have already read it, so only the measured service works.
    for service in SERVICES.into_iter().filter(|service| *service != SERVICE) {
        wait_until_all_read(&client, service).await?;
    }
    let mut memory_peak = 0;
    let measuring = async {
        loop {
            memory_peak = stack.memory_bytes(SERVICE)?.max(memory_peak);
            sleep(MEMORY_POLL_INTERVAL).await;
        }
    };
    let began = Instant::now();
    let reading = async {
        stack.start(SERVICE).await?;
        wait_until_all_read(&client, SERVICE).await
    };
    tokio::select! {
        read = reading => read?,
        broken = measuring => return broken,
    }
    let (took, max) = (began.elapsed().as_secs_f64(), memory_limit()? as f64 * MEMORY_SHARE_MAX);
    println!("{backlog} records in {took:.1} s, {memory_peak} bytes of {max}");
    ensure!(memory_peak > 0, "memory was not measured");
    ensure!((memory_peak as f64) < max, "{SERVICE} grew to {memory_peak} bytes, of {max}");
    assert_verified(&client).await
}
