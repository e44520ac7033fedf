//! A service that has a lot to catch up with. It may take as much memory as its container has, and would
//! otherwise be killed while it catches up, again at each start.

use super::*;

const VICTIM: &str = "order";

/// Far more than lies ready in a service that keeps its bounds: 50 MB then. One that took what a broker
/// offers came to 120 to 175 MB.
const RECORDS_MIN: i64 = 120_000;

const WEIGHED_EVERY: Duration = Duration::from_millis(50);

/// What a service may come to, of what docker compose lets it have. A container is charged for more than
/// what is seen here: files that were read, and what the kernel keeps for its connections.
const SHARE_MAX: f64 = 0.75;

/// What docker compose lets a service have.
fn memory_limit() -> Result<u64> {
    let compose = std::fs::read_to_string(e2e::template::checkout()?.join("docker-compose.yml"))?;
    let service = compose.split_once("x-locked-down:").context("what services share")?.1;
    let limit = service.split_once("mem_limit: ").context("a limit")?.1;
    let megabytes = limit.split_once("m\n").context("a limit in megabytes")?.0;
    Ok(megabytes.parse::<u64>()? * 1024 * 1024)
}

/// F29.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_service_that_reads_everything_again_stays_within_the_memory_of_its_container()
-> Result<()> {
    on_its_own(caught_up).await
}

async fn caught_up(stack: &Stack) -> Result<()> {
    let client = own_stack(stack).await?;
    nobody_notices(&client, 100, 10, async { Ok(()) }).await?;
    stack.stop(VICTIM).await?;
    replays::rewind(&client, VICTIM, i64::MAX).await?;
    let mut backlog = replays::behind(&client, VICTIM).await?;
    while backlog < RECORDS_MIN {
        replays::reproduce(&client, i64::MAX).await?;
        backlog = replays::behind(&client, VICTIM).await?;
    }
    // Whoever else hears of it has read it: nobody but the one that is weighed works.
    for service in SERVICES.into_iter().filter(|service| *service != VICTIM) {
        read_all(&client, service).await?;
    }
    let mut grown_to = 0;
    let weighing = async {
        loop {
            grown_to = stack.memory_bytes(VICTIM)?.max(grown_to);
            sleep(WEIGHED_EVERY).await;
        }
    };
    let began = Instant::now();
    let reading = async {
        stack.start(VICTIM).await?;
        read_all(&client, VICTIM).await
    };
    tokio::select! {
        read = reading => read?,
        broken = weighing => return broken,
    }
    let (took, max) = (began.elapsed().as_secs_f64(), memory_limit()? as f64 * SHARE_MAX);
    println!("{backlog} records in {took:.1} s, {grown_to} bytes of {max}");
    ensure!(grown_to > 0, "nobody was weighed");
    ensure!((grown_to as f64) < max, "{VICTIM} grew to {grown_to} bytes, of {max}");
    verified(&client).await
}
