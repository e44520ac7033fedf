//! The rounds of a run: which points are armed together, and what has to happen for them to be hit.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Result, ensure};
use chassis::commands::BATCH_MAX;
use futures::future::try_join_all;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::time::{Instant, sleep};

use super::armed::{Armed, Row};
use super::brought::Brought;
use super::points::{COMMANDS, CONSUMER, MIGRATE, RELAY, REVOKE, STOP, SWEEP};
use crate::Stack;
use crate::client::{Client, Order, Wish};
use crate::facts::Place;
use crate::history::Summary;
use crate::load::{self, Load};
use crate::narration::say;
use crate::wait::eventually;
use crate::{sabotage, seed};

/// Whose points are armed: the saga's services.
pub const ARMED: [&str; 3] = ["order", "payment", "stock"];

/// Orders a second: where the loops are hit, and beside the other rounds.
const RATE: u32 = 30;
const RATE_BESIDE: u32 = 10;

/// How long orders may take to end, or a step to be taken, once everything runs.
pub const SOON: Duration = Duration::from_secs(120);

/// How often an instance is made to leave its group, so that partitions move.
const MOVED_EVERY: Duration = Duration::from_secs(6);

/// The round whose processes are run to their end, and not supervised.
pub const MIGRATIONS: &str = "migrations";

/// Orders that are placed at a time.
const TOGETHER: usize = 100;

/// Where a run takes place, and how far it goes.
pub struct Site<'a> {
    pub stack: &'a Stack,
    pub client: Client,
    /// Which hits kill, of points that can be hit again and again.
    pub hits: &'a [u32],
    pub seed: u64,
    /// How long a round may wait for its points.
    pub within: Duration,
}

/// What came of a round.
pub struct Round {
    pub rows: Vec<Row>,
    /// Of the load beside it, if there was one.
    pub summary: Option<Summary>,
    /// Records that were put there to become dead letters.
    pub spoiled: HashSet<Place>,
    pub faults: Vec<String>,
}

impl Round {
    pub fn of(armed: &[Armed<'_>], summary: Option<Summary>) -> Result<Round> {
        let rows: Result<Vec<Vec<Row>>> = armed.iter().map(Armed::rows).collect();
        let (spoiled, faults) = (HashSet::new(), Vec::new());
        Ok(Round { rows: rows?.concat(), summary, spoiled, faults })
    }
}

impl Site<'_> {
    /// Arms the same points in several services.
    pub fn arm(
        &self,
        round: &'static str,
        services: &[&'static str],
        points: &[&'static str],
        hits: &[u32],
    ) -> Result<Vec<Armed<'_>>> {
        let arm = |service: &&'static str| Armed::new(self.stack, round, service, points, hits);
        services.iter().map(arm).collect()
    }

    /// Orders for as long as a round takes: repeated, hung up on, cancelled, declined, rejected.
    pub fn load(&self, rate: u32) -> Load {
        Load {
            rate,
            lasting: self.within * 2,
            cancelled_percent: 10,
            repeated_percent: 20,
            disconnected_percent: 2,
            lines_max: 8,
            seed: Some(self.seed),
            drained_within: SOON,
            ..Load::default()
        }
    }

    pub fn load_beside(&self) -> Load {
        self.load(RATE_BESIDE)
    }
}

/// The three loops of each service, side by side, under load.
pub async fn loops(site: &Site<'_>) -> Result<Round> {
    let points = [&COMMANDS[..], &RELAY, &CONSUMER].concat();
    let armed = site.arm("loops", &ARMED, &points, site.hits)?;
    let brought = Brought::default();
    let (summary, ()) = load::run_while(&site.client, &site.load(RATE), async {
        let killed = try_join_all(armed.iter().map(|armed| armed.killed_at_each(site.within)));
        tokio::select! {
            killed = killed => killed.map(drop),
            refused = brought.bring(&site.client) => refused,
        }
    })
    .await?;
    let (count, differ) = brought.asked_again(&site.client).await?;
    say(&format!(
        "  {count} deposits and deliveries were asked for again, {} differ",
        differ.len()
    ));
    Ok(Round { faults: differ, ..Round::of(&armed, Some(summary))? })
}

/// `migrate`, before anything else is there. It is run again until it ends by itself.
pub async fn migrations(site: &Site<'_>) -> Result<Round> {
    let armed = site.arm(MIGRATIONS, &ARMED, &MIGRATE, &[1])?;
    let programs = super::programs()?;
    try_join_all(armed.iter().map(async |armed| {
        let mut tries = 0;
        while let Err(failed) = site.stack.migrate(&programs, armed.service).await {
            tries += 1;
            ensure!(armed.kills()?.len() == tries, "no crash point: {failed:#}");
        }
        armed.forget()
    }))
    .await?;
    Round::of(&armed, None)
}

/// Services that are asked to stop, and die on the way.
pub async fn stops(site: &Site<'_>) -> Result<Round> {
    let armed = site.arm("stops", &ARMED, &STOP, &[1])?;
    let (summary, _) = load::run_while(&site.client, &site.load_beside(), async {
        try_join_all(armed.iter().map(async |armed| {
            // Those that are armed are the next ones.
            for _ in 0..=STOP.len() {
                armed.stop().await?;
                site.stack.start(armed.service).await?;
            }
            armed.disarm().await
        }))
        .await
    })
    .await?;
    Round::of(&armed, Some(summary))
}

/// Partitions that move between two instances of each service: one leaves again and again, and those
/// that are killed come back.
pub async fn revocations(site: &Site<'_>) -> Result<Round> {
    site.stack.set_instances(2).await?;
    for name in ARMED.map(|service| format!("{service}-2")) {
        site.stack.set_programs(&name, &super::programs()?)?;
    }
    let armed = site.arm("revocations", &ARMED, &REVOKE, site.hits)?;
    let (summary, ()) = load::run_while(&site.client, &site.load_beside(), async {
        let moving = async {
            loop {
                sleep(MOVED_EVERY).await;
                for armed in &armed {
                    if !armed.all_fired()? {
                        site.stack.stop(&format!("{}-2", armed.service)).await?;
                    }
                }
            }
        };
        tokio::select! {
            killed = try_join_all(armed.iter().map(|armed| armed.killed_at_each(site.within))) => {
                killed.map(drop)
            }
            failed = moving => failed,
        }
    })
    .await?;
    site.stack.set_instances(1).await?;
    Round::of(&armed, Some(summary))
}

/// The deadline's sweep, with stock away and no client: whatever the order service commits is its.
pub async fn deadline(site: &Site<'_>) -> Result<Round> {
    let Site { stack, client, .. } = site;
    stack.stop("stock").await?;
    let last = site.hits.iter().max().copied().unwrap_or(1);
    // What is overdue is ended in batches as large as may be, and each of them is one hit.
    let count = (last as usize - 1) * BATCH_MAX + 1;
    let orders = place(client, seed::CUSTOMERS[0].customer_id, count).await?;
    all_read(client, &orders, "payment to be verified", |order| order.payment == "verified")
        .await?;
    stack.set_environment("order", sabotage::DEADLINE, Some("1"))?;
    let armed = site.arm("deadline", &["order"], &SWEEP, site.hits)?;
    armed[0].killed_at_each(site.within).await?;
    all_read(client, &orders, "the deadline to end the order", |order| {
        order.reason.as_deref() == Some("deadline")
    })
    .await?;
    stack.set_environment("order", sabotage::DEADLINE, None)?;
    stack.stop("order").await?;
    tokio::try_join!(stack.start("order"), stack.start("stock"))?;
    all_read(client, &orders, "both legs to end", Order::has_ended).await?;
    Round::of(&armed, None)
}

/// Orders that have to be accepted, of what anybody could order.
pub async fn place(client: &Client, customer_id: uuid::Uuid, count: usize) -> Result<Vec<Order>> {
    let basket = [Wish { sku: seed::ITEMS[0].sku.to_string(), quantity: 1 }];
    let placed = (0..count).map(|_| client.placed(customer_id, &basket));
    stream::iter(placed).buffered(TOGETHER).try_collect().await
}

/// Waits until each order reads as it should.
pub async fn all_read(
    client: &Client,
    orders: &[Order],
    what: &str,
    is_so: impl Fn(&Order) -> bool,
) -> Result<()> {
    let deadline = Instant::now() + SOON;
    for order in orders {
        eventually(what, deadline - Instant::now(), async || {
            let order = client.order(order.order_id).await?;
            ensure!(is_so(&order), "{order:?}");
            Ok(())
        })
        .await?;
    }
    Ok(())
}

/// Over all rounds.
pub fn spoiled(rounds: &[Round]) -> HashSet<Place> {
    rounds.iter().flat_map(|round| &round.spoiled).copied().collect()
}

/// Orders by how they ended, over all rounds.
pub fn ended(rounds: &[Round]) -> BTreeMap<&'static str, u64> {
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
