//! The rounds of a run: the points that are armed together, and the load that hits them.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Result, ensure};
use chassis::commands::COMMAND_BATCH_MAX;
use checker::record::RecordPosition;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use launcher::{Stack, eventually};
use tokio::time::{Instant, sleep};

use super::armed_service::{self, ArmedService, PointResult};
use super::background_commands::BackgroundCommands;
use super::list::{COMMANDS, CONSUMER, MIGRATE, RELAY, REVOKE, STOP, SWEEP};
use crate::client::http_client::Client;
use crate::client::order::{LineRequest, Order};
use crate::console::print_line;
use crate::scenarios::order_faults;
use crate::workload::load;
use crate::workload::load_summary::LoadSummary;
use crate::workload::options::Load;
use crate::workload::seed;

/// The services with armed points: those of the saga.
pub const ARMED_SERVICES: [&str; 3] = ["order", "payment", "stock"];

/// Orders a second: in the round of the loops, and in the other rounds.
const RATE: u32 = 30;
const BACKGROUND_RATE: u32 = 10;

/// How long orders may take to end, or a step to complete, while every component runs.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(120);

/// The interval at which an instance leaves its group, so that partitions move.
const REBALANCE_INTERVAL: Duration = Duration::from_secs(6);

/// The round of `migrate`, whose processes end by themselves and have no supervisor.
pub const MIGRATIONS_ROUND: &str = "migrations";

/// Concurrent orders.
const CONCURRENCY: usize = 100;

/// What every round needs.
pub struct CrashPointContext<'a> {
    pub stack: &'a Stack,
    pub client: Client,
    /// The hits that kill, of points that can be hit repeatedly.
    pub hits: &'a [u32],
    pub seed: u64,
    /// How long a round may wait for its points.
    pub timeout: Duration,
}

/// The result of a round.
pub struct CrashPointRound {
    pub rows: Vec<PointResult>,
    /// The summary of its load, if it had one.
    pub summary: Option<LoadSummary>,
    /// Records that were produced to become dead letters.
    pub expected_dead_letters: HashSet<RecordPosition>,
    pub failures: Vec<String>,
}

impl CrashPointRound {
    pub fn new(
        armed: &[ArmedService<'_>],
        summary: Option<LoadSummary>,
    ) -> Result<CrashPointRound> {
        let rows: Result<Vec<Vec<PointResult>>> = armed.iter().map(ArmedService::rows).collect();
        let (expected_dead_letters, failures) = (HashSet::new(), Vec::new());
        Ok(CrashPointRound { rows: rows?.concat(), summary, expected_dead_letters, failures })
    }
}

impl CrashPointContext<'_> {
    /// Arms the same points in several services.
    pub fn arm(
        &self,
        round: &'static str,
        services: &[&'static str],
        points: &[&'static str],
        hits: &[u32],
    ) -> Result<Vec<ArmedService<'_>>> {
        let arm =
            |service: &&'static str| ArmedService::new(self.stack, round, service, points, hits);
        services.iter().map(arm).collect()
    }

    /// Orders for the duration of a round: duplicated, disconnected, cancelled, declined and
    /// rejected.
    pub fn load(&self, rate: u32) -> Load {
        Load {
            rate,
            duration: self.timeout * 2,
            cancelled_percent: 10,
            duplicated_percent: 20,
            disconnected_percent: 2,
            lines_max: 8,
            seed: Some(self.seed),
            drain_timeout: STEP_TIMEOUT,
            ..Load::default()
        }
    }

    pub fn background_load(&self) -> Load {
        self.load(BACKGROUND_RATE)
    }
}

/// The three loops of each service, concurrently, under load.
pub async fn loops(context: &CrashPointContext<'_>) -> Result<CrashPointRound> {
    let points = [&COMMANDS[..], &RELAY, &CONSUMER].concat();
    let armed = context.arm("loops", &ARMED_SERVICES, &points, context.hits)?;
    let commands = BackgroundCommands::default();
    let (summary, ()) = load::run_while(&context.client, &context.load(RATE), async {
        let killed =
            try_join_all(armed.iter().map(|armed| armed.run_until_killed(context.timeout)));
        tokio::select! {
            killed = killed => killed.map(drop),
            refused = commands.run(&context.client) => refused,
        }
    })
    .await?;
    let (count, differ) = commands.repeat_all(&context.client).await?;
    print_line(&format!(
        "  {count} deposits and deliveries were repeated, {} responses differ",
        differ.len()
    ));
    Ok(CrashPointRound { failures: differ, ..CrashPointRound::new(&armed, Some(summary))? })
}

/// `migrate`, on an empty database. It is run again until it completes.
pub async fn migrations(context: &CrashPointContext<'_>) -> Result<CrashPointRound> {
    let armed = context.arm(MIGRATIONS_ROUND, &ARMED_SERVICES, &MIGRATE, &[1])?;
    let programs = armed_service::programs()?;
    try_join_all(armed.iter().map(async |armed| {
        let mut tries = 0;
        while let Err(failed) = context.stack.migrate_with(&programs, armed.service).await {
            tries += 1;
            ensure!(armed.kills()?.len() == tries, "no crash point: {failed:#}");
        }
        armed.clear_points()
    }))
    .await?;
    CrashPointRound::new(&armed, None)
}

/// Services that are killed during a graceful stop.
pub async fn stops(context: &CrashPointContext<'_>) -> Result<CrashPointRound> {
    let armed = context.arm("stops", &ARMED_SERVICES, &STOP, &[1])?;
    let (summary, _) = load::run_while(&context.client, &context.background_load(), async {
        try_join_all(armed.iter().map(async |armed| {
            // The armed processes are the next ones.
            for _ in 0..=STOP.len() {
                armed.stop().await?;
                context.stack.start(armed.service).await?;
            }
            armed.disarm().await
        }))
        .await
    })
    .await?;
    CrashPointRound::new(&armed, Some(summary))
}

/// Partitions that move between two instances of each service: one instance leaves again and again,
/// and a killed one comes back.
pub async fn revocations(context: &CrashPointContext<'_>) -> Result<CrashPointRound> {
    context.stack.set_instances(2).await?;
    for name in ARMED_SERVICES.map(|service| format!("{service}-2")) {
        context.stack.set_programs(&name, &armed_service::programs()?)?;
    }
    let armed = context.arm("revocations", &ARMED_SERVICES, &REVOKE, context.hits)?;
    let (summary, ()) = load::run_while(&context.client, &context.background_load(), async {
        let moving = async {
            loop {
                sleep(REBALANCE_INTERVAL).await;
                for armed in &armed {
                    if !armed.all_fired()? {
                        context.stack.stop(&format!("{}-2", armed.service)).await?;
                    }
                }
            }
        };
        tokio::select! {
            killed = try_join_all(armed.iter().map(|armed| armed.run_until_killed(context.timeout))) => {
                killed.map(drop)
            }
            failed = moving => failed,
        }
    })
    .await?;
    context.stack.set_instances(1).await?;
    CrashPointRound::new(&armed, Some(summary))
}

/// The deadline's sweep, with stock stopped and no client: every commit of the order service is the
/// sweep's.
pub async fn deadline(context: &CrashPointContext<'_>) -> Result<CrashPointRound> {
    let CrashPointContext { stack, client, .. } = context;
    stack.stop("stock").await?;
    let last = context.hits.iter().max().copied().unwrap_or(1);
    // Overdue orders are cancelled in the largest batches, and each batch is one hit.
    let count = (last as usize - 1) * COMMAND_BATCH_MAX + 1;
    let orders = place_orders(client, seed::CUSTOMERS[0].customer_id, count).await?;
    wait_for_all(client, &orders, "payment to be verified", |order| order.payment == "verified")
        .await?;
    stack.set_environment("order", order_faults::DEADLINE_VARIABLE, Some("1"))?;
    let armed = context.arm("deadline", &["order"], &SWEEP, context.hits)?;
    armed[0].run_until_killed(context.timeout).await?;
    wait_for_all(client, &orders, "the deadline to end the order", |order| {
        order.reason.as_deref() == Some("deadline")
    })
    .await?;
    stack.set_environment("order", order_faults::DEADLINE_VARIABLE, None)?;
    stack.stop("order").await?;
    tokio::try_join!(stack.start("order"), stack.start("stock"))?;
    wait_for_all(client, &orders, "both legs to end", Order::has_ended).await?;
    CrashPointRound::new(&armed, None)
}

/// Orders of the seeded items. Each must be accepted.
pub async fn place_orders(
    client: &Client,
    customer_id: uuid::Uuid,
    count: usize,
) -> Result<Vec<Order>> {
    let basket = [LineRequest { sku: seed::ITEMS[0].sku.to_string(), quantity: 1 }];
    let placed = (0..count).map(|_| client.place_until_accepted(customer_id, &basket));
    stream::iter(placed).buffered(CONCURRENCY).try_collect().await
}

/// Waits until each order has the expected state.
pub async fn wait_for_all(
    client: &Client,
    orders: &[Order],
    what: &str,
    is_so: impl Fn(&Order) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + STEP_TIMEOUT;
    for order in orders {
        eventually(what, deadline - Instant::now(), async || {
            let order = client.get_order(order.order_id).await?;
            ensure!(is_so(&order), "{order:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// The expected dead letters of all rounds.
pub fn expected_dead_letters(rounds: &[CrashPointRound]) -> HashSet<RecordPosition> {
    rounds.iter().flat_map(|round| &round.expected_dead_letters).copied().collect()
}

/// Orders by their outcome, over all rounds.
pub fn count_outcomes(rounds: &[CrashPointRound]) -> BTreeMap<&'static str, u64> {
    let mut ended = BTreeMap::new();
    for summary in rounds.iter().filter_map(|round| round.summary.as_ref()) {
        *ended.entry("confirmed").or_default() += summary.confirmed;
        for (reason, count) in &summary.cancelled {
            let how = match reason.as_str() {
                "payment_declined" | "stock_rejected" => "rejected",
                _ => "cancelled",
            };
            *ended.entry(how).or_default() += count;
        }
    }
    ended
}
