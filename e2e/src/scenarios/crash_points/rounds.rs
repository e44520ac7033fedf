//! The rounds of a run: the points that are armed together, and the load that hits them.

use std::collections::HashSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use chassis::db::scheduled::TIMER_BATCH_MAX;
use checker::Sources;
use checker::record::RecordPosition;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use launcher::eventually;
use tokio::time::{Instant, sleep};

use super::armed_service::{self, ArmedService, PointResult};
use super::background_commands::BackgroundCommands;
use super::list::{COMMANDS, CONSUMER, MIGRATE, OUTSIDE, RELAY, REVOKE, SCHEDULER, STOP};
use crate::checker::shipments;
use crate::checker::sources::system;
use crate::client::http_client::Client;
use crate::client::order::{LineRequest, Order};
use crate::console::print_line;
use crate::scenarios::order_faults::DEADLINE_VARIABLE;
use crate::scenarios::runner::Run;
use crate::scenarios::shipping::{self, Lies};
use crate::stack_description::{CARRIER, SHIPPING};
use crate::workload::load;
use crate::workload::load_summary::LoadSummary;
use crate::workload::options::Load;
use crate::workload::seed;

/// The services with armed points: those of the saga.
pub const ARMED_SERVICES: [&str; 3] = ["order", "payment", "stock"];

/// Orders a second: in the round of the loops, and in the other rounds.
const RATE: u32 = 30;
pub const BACKGROUND_RATE: u32 = 10;

/// How long orders may take to end, or a step to complete, while every component runs.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(120);

/// The interval at which an instance leaves its group, so that partitions move.
const REBALANCE_INTERVAL: Duration = Duration::from_secs(6);

/// The round of `migrate`, whose processes end by themselves and have no supervisor.
pub const MIGRATIONS_ROUND: &str = "migrations";

/// Concurrent orders.
const CONCURRENCY: usize = 100;

/// What every round needs, and the results of all rounds.
pub struct CrashPointRun<'a> {
    pub run: Run<'a>,
    /// The hits that kill, of points that can be hit repeatedly.
    pub hits: &'a [u32],
    seed: u64,
    /// How long a round may wait for its points.
    pub timeout: Duration,
    pub rows: Vec<PointResult>,
    /// The summaries of the loads.
    pub summaries: Vec<LoadSummary>,
    /// Records that were produced to become dead letters.
    pub expected_dead_letters: HashSet<RecordPosition>,
}

impl<'a> CrashPointRun<'a> {
    pub fn new(run: Run<'a>, hits: &'a [u32], seed: u64, timeout: Duration) -> CrashPointRun<'a> {
        let (rows, summaries, expected_dead_letters) = Default::default();
        CrashPointRun { run, hits, seed, timeout, rows, summaries, expected_dead_letters }
    }

    /// Arms the same points in several services.
    pub fn arm(
        &self,
        round: &'static str,
        services: &[&'static str],
        points: &[&'static str],
        hits: &[u32],
    ) -> Result<Vec<ArmedService<'a>>> {
        let stack = self.run.stack;
        let arm = |service: &&'static str| ArmedService::new(stack, round, service, points, hits);
        services.iter().map(arm).collect()
    }

    /// Places orders until a future ends: duplicated, disconnected, cancelled, declined and
    /// rejected ones.
    pub async fn load_while<T>(
        &mut self,
        rate: u32,
        meanwhile: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let load = Load {
            rate,
            duration: self.timeout * 2,
            drain_timeout: STEP_TIMEOUT,
            ..Load::unruly(self.seed)
        };
        let (summary, done) = load::run_while(&self.run.client, &load, meanwhile).await?;
        self.run.add_summary(&summary);
        self.summaries.push(summary);
        Ok(done)
    }

    /// Whether every promise to a client was kept so far.
    pub fn clients_were_served(&self) -> bool {
        self.summaries.iter().all(LoadSummary::holds)
    }

    /// Adds the results of a round. Each point must have killed at each of its hits.
    pub fn add_kills(&mut self, armed: &[ArmedService<'_>]) -> Result<()> {
        for row in armed.iter().map(ArmedService::rows).collect::<Result<Vec<_>>>()?.concat() {
            let PointResult { round, service, point, .. } = row;
            let sentence =
                |hit| format!("{point} of {service} ({round}) was not hit for the {hit}. time");
            self.run.report.violations.extend(row.missing.iter().map(sentence));
            self.rows.push(row);
        }
        Ok(())
    }

    /// The three loops of each service, concurrently, under load.
    pub async fn kill_loops(&mut self) -> Result<()> {
        let points = [&COMMANDS[..], &RELAY, &CONSUMER].concat();
        let armed = self.arm("loops", &ARMED_SERVICES, &points, self.hits)?;
        let (commands, client) = (BackgroundCommands::default(), self.run.client.clone());
        let killed = kill_all(&armed, self.timeout);
        self.load_while(RATE, async {
            tokio::select! {
                killed = killed => killed,
                refused = commands.run(&client) => refused,
            }
        })
        .await?;
        let (count, differ) = commands.repeat_all(&client).await?;
        print_line(&format!(
            "  {count} deposits and deliveries were repeated, {} responses differ",
            differ.len()
        ));
        self.run.report.violations.extend(differ);
        self.add_kills(&armed)
    }

    /// `migrate`, on an empty database. It is run again until it completes.
    pub async fn kill_migrations(&mut self) -> Result<()> {
        let armed = self.arm(MIGRATIONS_ROUND, &ARMED_SERVICES, &MIGRATE, &[1])?;
        let (stack, programs) = (self.run.stack, armed_service::programs()?);
        try_join_all(armed.iter().map(async |armed| {
            let mut tries = 0;
            while let Err(failed) = stack.migrate_with(&programs, armed.service).await {
                tries += 1;
                ensure!(armed.kills()?.len() == tries, "no crash point: {failed:#}");
            }
            armed.clear_points()
        }))
        .await?;
        self.add_kills(&armed)
    }

    /// Services that are killed during a graceful stop.
    pub async fn kill_stops(&mut self) -> Result<()> {
        let armed = self.arm("stops", &ARMED_SERVICES, &STOP, &[1])?;
        let stack = self.run.stack;
        let stopping = try_join_all(armed.iter().map(async |armed| {
            // The armed processes are the next ones.
            for _ in 0..=STOP.len() {
                armed.stop().await?;
                stack.start(armed.service).await?;
            }
            armed.disarm().await
        }));
        self.load_while(BACKGROUND_RATE, stopping).await?;
        self.add_kills(&armed)
    }

    /// Partitions that move between two instances of each service: one instance leaves again and
    /// again, and a killed one comes back.
    pub async fn kill_revocations(&mut self) -> Result<()> {
        let stack = self.run.stack;
        stack.set_instances(2).await?;
        for name in ARMED_SERVICES.map(|service| format!("{service}-2")) {
            stack.set_programs(&name, &armed_service::programs()?)?;
        }
        let armed = self.arm("revocations", &ARMED_SERVICES, &REVOKE, self.hits)?;
        let killed = kill_all(&armed, self.timeout);
        let moving = async {
            loop {
                sleep(REBALANCE_INTERVAL).await;
                for armed in &armed {
                    if !armed.all_fired()? {
                        stack.stop(&format!("{}-2", armed.service)).await?;
                    }
                }
            }
        };
        self.load_while(BACKGROUND_RATE, async {
            tokio::select! {
                killed = killed => killed,
                failed = moving => failed,
            }
        })
        .await?;
        stack.set_instances(1).await?;
        self.add_kills(&armed)
    }

    /// The calls of shipping to a carrier that lies, its webhooks, and the answers of an operator.
    pub async fn kill_outside(&mut self) -> Result<()> {
        let stack = self.run.stack;
        // Parcels that are on their way for long, and a shipment that is asked about often: tasks.
        let settings = [(CARRIER, "DELIVER_SECONDS", "8"), (SHIPPING, "NEWS_SECONDS", "1")];
        let lies = Lies::begin(stack, &settings).await?;
        stack.start(CARRIER).await?;
        let armed = self.arm("outside", &[SHIPPING], &OUTSIDE, self.hits)?;
        let (client, killed) = (self.run.client.clone(), kill_all(&armed, self.timeout));
        self.load_while(BACKGROUND_RATE, async {
            tokio::select! {
                killed = killed => killed,
                failed = shipping::answer_tasks(stack, &client) => match failed? {},
            }
        })
        .await?;
        // A shipment that waits for news with the usual settings would wait for an hour.
        let sources = Sources::connect(&system(&self.run.client)).await?;
        let ledger = self.run.client.addresses.carrier_ledger.as_deref();
        eventually("every shipment to end", STEP_TIMEOUT, async || {
            let open = shipments::under_way(&sources, ledger).await?;
            ensure!(open.is_empty(), "{open:?}");
            Ok(())
        })
        .await?;
        lies.end().await?;
        self.add_kills(&armed)
    }

    /// The timers of deadlines, with stock stopped and no client.
    pub async fn kill_deadline(&mut self) -> Result<()> {
        let (stack, client) = (self.run.stack, self.run.client.clone());
        stack.stop("stock").await?;
        let last = self.hits.iter().max().copied().unwrap_or(1);
        // Timers that are due together fire in the largest batches, and each batch is one hit.
        let count = (last as usize - 1) * TIMER_BATCH_MAX + 1;
        let orders = place_orders(&client, seed::CUSTOMERS[0].customer_id, count).await?;
        let is_verified = |order: &Order| order.leg("payment") == "verified";
        wait_for_all(&client, &orders, "payment to be verified", is_verified).await?;
        stack.set_environment("order", DEADLINE_VARIABLE, Some("1"))?;
        let armed = self.arm("deadline", &["order"], &SCHEDULER, self.hits)?;
        armed[0].run_until_killed(self.timeout).await?;
        let is_over = |order: &Order| order.reason.as_deref() == Some("deadline");
        wait_for_all(&client, &orders, "the deadline to end the order", is_over).await?;
        stack.set_environment("order", DEADLINE_VARIABLE, None)?;
        stack.stop("order").await?;
        tokio::try_join!(stack.start("order"), stack.start("stock"))?;
        wait_for_all(&client, &orders, "all legs to end", Order::has_ended).await?;
        self.add_kills(&armed)
    }
}

/// Runs services until all of their points have killed, or the time is up.
pub async fn kill_all(armed: &[ArmedService<'_>], within: Duration) -> Result<()> {
    try_join_all(armed.iter().map(|armed| armed.run_until_killed(within))).await.map(drop)
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
