//! A load at a fixed rate, with a client's history of it: what was asked, what was answered, and
//! what became of it. An open loop: a slow answer delays nobody, so latency is what clients feel.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use futures::stream::{self, StreamExt};
use rand::Rng;
use rand::seq::IndexedRandom;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use uuid::Uuid;

use crate::client::{Client, Order, Outcome, Wish, grouped};
use crate::{Stack, seed};

/// Beyond this many, requests wait for answers; the time they wait counts as latency.
const WAITING_MAX: usize = 4_096;

/// How long an unknown outcome is asked for.
const SETTLED_WITHIN: Duration = Duration::from_secs(60);

/// Orders looked at in one go while they end.
const LOOKED_AT: usize = 64;

const LOOK_EVERY: Duration = Duration::from_millis(100);
const SAY_EVERY: Duration = Duration::from_secs(5);

/// Each order's lines at most, and pieces of each.
const LINES_MAX: usize = 4;
const QUANTITY_MAX: i64 = 3;

/// What to load with.
#[derive(Clone, Debug, clap::Args)]
pub struct Load {
    /// Orders a second
    #[arg(long, default_value_t = 100)]
    pub rate: u32,
    /// For how long
    #[arg(long, default_value_t = 90)]
    pub seconds: u32,
    /// Of a hundred orders, so many are cancelled by their customer within a second
    #[arg(long, default_value_t = 5)]
    pub cancelled: u32,
    /// Of a hundred orders, so many are placed by a customer who can't pay
    #[arg(long, default_value_t = 5)]
    pub poor: u32,
    /// Of a hundred orders, so many want more of an article than there is
    #[arg(long, default_value_t = 5)]
    pub scarce: u32,
    /// Of a hundred orders, so many are posted twice with the same key
    #[arg(long, default_value_t = 5)]
    pub repeated: u32,
    /// Kill this member with SIGKILL again and again: stock, payment, order, kafka, registry, stock-db …
    #[arg(long)]
    pub kill: Option<String>,
    /// Seconds between two kills; the first comes after half of them
    #[arg(long, default_value_t = 30)]
    pub every: u32,
    /// Seconds from each kill to the start
    #[arg(long, default_value_t = 5)]
    pub down: u32,
    /// Seconds that the orders may take to end, from the last start or the last order on
    #[arg(long, default_value_t = 60)]
    pub drain: u32,
}

impl Default for Load {
    fn default() -> Load {
        let (cancelled, poor, scarce, repeated) = (5, 5, 5, 5);
        let (kill, every, down, drain) = (None, 30, 5, 60);
        Load { rate: 100, seconds: 90, cancelled, poor, scarce, repeated, kill, every, down, drain }
    }
}

/// One order as its client means it.
struct Plan {
    at: Duration,
    key: String,
    customer_id: Uuid,
    lines: Vec<Wish>,
    cancel_after: Option<Duration>,
    repeated: bool,
}

/// And what the client was told.
struct Told {
    plan: Plan,
    outcome: Outcome,
    latency: Duration,
    /// What the repeat was told, if it was told anything.
    repeat: Option<Outcome>,
    cancel: Cancel,
}

#[derive(Clone, Copy, PartialEq)]
enum Cancel {
    None,
    Accepted,
    TooLate,
    Unknown,
}

/// What became of a load.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub placed: u64,
    pub accepted: u64,
    pub refused: u64,
    /// Without a clear answer at first, and how many of them turned out to be stored.
    pub unknown: u64,
    pub unknown_stored: u64,
    /// Nobody could say until the end.
    pub unsettled: u64,
    /// Told something else for the same key and body.
    pub repeats_differ: u64,
    pub repeats_same: u64,
    pub cancels_accepted: u64,
    pub cancels_too_late: u64,
    /// Cancelled for their client, and not for the order.
    pub cancels_broken: u64,
    pub confirmed: u64,
    pub cancelled: BTreeMap<String, u64>,
    pub not_ended: u64,
    pub kills: u64,
    pub took: Duration,
    pub drained_in: Duration,
    pub latency_p50: Duration,
    pub latency_p99: Duration,
    pub latency_max: Duration,
    /// The first refusals and doubts, word for word.
    pub examples: Vec<String>,
    pub orders: Vec<Uuid>,
}

/// Runs a load to its end: placed, settled, drained.
pub async fn run(stack: &Stack, client: &Client, load: &Load) -> Result<Summary> {
    ensure!(load.rate > 0, "a rate of 0 loads nothing");
    let prices = provide(client, load).await?;
    let plans = plans(load);
    let began = Instant::now();
    let (told, last_start) =
        tokio::try_join!(place_all(client, load, plans, began), kills(stack, load, began))?;
    let (kills, last_start) = last_start;
    let mut summary = Summary { took: began.elapsed(), kills, ..Summary::default() };
    let orders = settle(client, told, &mut summary).await;
    let from = last_start.unwrap_or_else(Instant::now);
    let deadline = from.max(Instant::now()) + Duration::from_secs(load.drain.into());
    drain(client, orders, deadline, &prices, &mut summary).await?;
    summary.drained_in = from.elapsed();
    Ok(summary)
}

/// Makes sure that money and articles suffice for all of it; answers the prices.
async fn provide(client: &Client, load: &Load) -> Result<BTreeMap<String, i64>> {
    let key = format!("load-{}", Uuid::now_v7());
    let orders = i64::from(load.rate) * i64::from(load.seconds);
    let pieces = orders * QUANTITY_MAX;
    let dearest = seed::ARTICLES.iter().map(|article| article.price_cents).max().unwrap_or(0);
    // Spread evenly, with as much again to spare.
    let customers = seed::CUSTOMERS.len() as i64;
    let cents = orders * dearest * QUANTITY_MAX * LINES_MAX as i64 / customers + dearest;
    let money = seed::CUSTOMERS.iter().map(|c| client.deposit(c.customer_id, cents, &key));
    let goods = seed::ARTICLES.iter().map(|article| client.deliver(article.sku, pieces, &key));
    tokio::try_join!(try_join_all(money), try_join_all(goods)).context("before the load")?;
    let items: serde_json::Value = client.read("order", "/items").await?;
    let items = items["items"].as_array().into_iter().flatten();
    let prices = items
        .filter_map(|item| Some((item["sku"].as_str()?.into(), item["price_cents"].as_i64()?)));
    Ok(prices.collect())
}

fn plans(load: &Load) -> Vec<Plan> {
    let mut rng = rand::rng();
    let count = u64::from(load.rate) * u64::from(load.seconds);
    (0..count)
        .map(|nth| {
            let mut chosen = |share: u32| rng.random_range(0..100) < share;
            let (poor, scarce) = (chosen(load.poor), chosen(load.scarce));
            let (cancelled, repeated) = (chosen(load.cancelled), chosen(load.repeated));
            let customer = if poor { Some(&seed::POOR) } else { seed::CUSTOMERS.choose(&mut rng) };
            let wanted = rng.random_range(1..=LINES_MAX);
            let mut lines: Vec<Wish> = seed::ARTICLES
                .choose_multiple(&mut rng, wanted)
                .map(|article| Wish {
                    sku: article.sku.to_string(),
                    quantity: rand::rng().random_range(1..=QUANTITY_MAX),
                })
                .collect();
            if scarce {
                let quantity = seed::SCARCE.delivered + 1 + rng.random_range(0..20);
                lines.push(Wish { sku: seed::SCARCE.sku.to_string(), quantity });
            }
            Plan {
                at: Duration::from_secs_f64(nth as f64 / f64::from(load.rate)),
                key: Uuid::now_v7().to_string(),
                customer_id: customer
                    .map_or(seed::POOR.customer_id, |customer| customer.customer_id),
                lines,
                cancel_after: cancelled.then(|| Duration::from_millis(rng.random_range(0..1_000))),
                repeated,
            }
        })
        .collect()
}

async fn place_all(
    client: &Client,
    load: &Load,
    plans: Vec<Plan>,
    began: Instant,
) -> Result<Vec<Told>> {
    let room = Arc::new(Semaphore::new(WAITING_MAX));
    let mut placing = JoinSet::new();
    let mut told = Vec::with_capacity(plans.len());
    let (count, mut said) = (plans.len(), began);
    for (nth, plan) in plans.into_iter().enumerate() {
        sleep_until(began + plan.at).await;
        let (client, room) = (client.clone(), room.clone());
        placing.spawn(async move {
            let _room = room.acquire_owned().await;
            place(&client, plan, began).await
        });
        while let Some(ended) = placing.try_join_next() {
            told.push(ended?);
        }
        if said.elapsed() > SAY_EVERY {
            said = Instant::now();
            let nth = grouped(nth as u64);
            eprintln!("{nth} of {} orders placed at {}/s …", grouped(count as u64), load.rate);
        }
    }
    while let Some(ended) = placing.join_next().await {
        told.push(ended?);
    }
    Ok(told)
}

async fn place(client: &Client, plan: Plan, began: Instant) -> Told {
    let post = || client.place(plan.customer_id, &plan.lines, &plan.key);
    let (outcome, repeat) = if plan.repeated {
        // At once or a little later: both are what impatient clients do.
        let pause = Duration::from_millis(rand::rng().random_range(0..20));
        let later = async {
            sleep(pause).await;
            post().await
        };
        let (first, second) = tokio::join!(timed(post(), began + plan.at), later);
        (first, Some(second))
    } else {
        (timed(post(), began + plan.at).await, None)
    };
    let (outcome, latency) = outcome;
    let cancel = match (plan.cancel_after, order_id(&outcome)) {
        (Some(after), Some(order_id)) => {
            sleep(after).await;
            match client.cancel(order_id).await.map(|answer| answer.status) {
                Ok(200) => Cancel::Accepted,
                Ok(409) => Cancel::TooLate,
                _ => Cancel::Unknown,
            }
        }
        _ => Cancel::None,
    };
    Told { plan, outcome, latency, repeat, cancel }
}

async fn timed(post: impl Future<Output = Outcome>, due: Instant) -> (Outcome, Duration) {
    let outcome = post.await;
    (outcome, due.elapsed())
}

fn order_id(outcome: &Outcome) -> Option<Uuid> {
    match outcome {
        Outcome::Ok(answer) => Some(answer.json::<Order>().ok()?.order_id),
        _ => None,
    }
}

/// Kills and starts a member while the load lasts. Answers how often, and when it was last started.
async fn kills(stack: &Stack, load: &Load, began: Instant) -> Result<(u64, Option<Instant>)> {
    let Some(victim) = &load.kill else {
        return Ok((0, None));
    };
    let (mut kills, mut last_start) = (0, None);
    let until = Duration::from_secs(load.seconds.into());
    let every = Duration::from_secs(load.every.max(load.down + 1).into());
    let mut at = every / 2;
    while at < until {
        sleep_until(began + at).await;
        stack.kill(victim).await?;
        kills += 1;
        eprintln!("{:.0} s: killed {victim}", began.elapsed().as_secs_f64());
        sleep(Duration::from_secs(load.down.into())).await;
        last_start = Some(Instant::now());
        stack.start(victim).await?;
        eprintln!("{:.0} s: {victim} is back", began.elapsed().as_secs_f64());
        at += every;
    }
    Ok((kills, last_start))
}

/// An order that was accepted.
struct Accepted {
    order_id: Uuid,
    lines: Vec<Wish>,
    cancel: Cancel,
}

/// Asks again, with the same key, wherever the outcome is unknown.
async fn settle(client: &Client, told: Vec<Told>, summary: &mut Summary) -> Vec<Accepted> {
    let mut latencies: Vec<Duration> = told.iter().map(|told| told.latency).collect();
    latencies.sort_unstable();
    let at = |share: f64| {
        let nth = (latencies.len() as f64 * share) as usize;
        latencies.get(nth.min(latencies.len().saturating_sub(1))).copied().unwrap_or_default()
    };
    (summary.latency_p50, summary.latency_p99, summary.latency_max) = (at(0.5), at(0.99), at(1.0));
    summary.placed = told.len() as u64;
    let deadline = Instant::now() + SETTLED_WITHIN;
    let settled: Vec<(Told, Outcome)> = stream::iter(told)
        .map(async |told| {
            let mut outcome = told.outcome.clone();
            while matches!(outcome, Outcome::Unknown(_)) && Instant::now() < deadline {
                sleep(LOOK_EVERY).await;
                outcome =
                    client.place(told.plan.customer_id, &told.plan.lines, &told.plan.key).await;
                // Refused for now is no answer to what became of the first try.
                if matches!(&outcome, Outcome::Refused(answer) if answer.status == 503) {
                    outcome = Outcome::Unknown(String::new());
                }
            }
            (told, outcome)
        })
        .buffer_unordered(LOOKED_AT)
        .collect()
        .await;
    let mut accepted = Vec::with_capacity(settled.len());
    for (told, outcome) in settled {
        let mut example = |what: &str, why: &dyn std::fmt::Display| {
            if summary.examples.len() < 5 {
                summary.examples.push(format!("{what}: {why}"));
            }
        };
        if let Outcome::Unknown(why) = &told.outcome {
            example("unknown at first", why);
            summary.unknown += 1;
            summary.unknown_stored += u64::from(matches!(outcome, Outcome::Ok(_)));
        }
        match (&outcome, &told.repeat) {
            (Outcome::Ok(first), Some(Outcome::Ok(second))) if first == second => {
                summary.repeats_same += 1
            }
            (Outcome::Ok(first), Some(Outcome::Ok(second))) => {
                example("the repeat differs", &format!("{first}, then {second}"));
                summary.repeats_differ += 1;
            }
            _ => {}
        }
        match (&outcome, order_id(&outcome)) {
            (Outcome::Ok(_), Some(order_id)) => {
                summary.accepted += 1;
                accepted.push(Accepted { order_id, lines: told.plan.lines, cancel: told.cancel });
            }
            (Outcome::Refused(answer), _) => {
                example("refused", answer);
                summary.refused += 1;
            }
            _ => summary.unsettled += 1,
        }
    }
    accepted.sort_unstable_by_key(|accepted| accepted.order_id);
    accepted
}

/// Waits until every accepted order has ended, oldest first, and notes how.
async fn drain(
    client: &Client,
    accepted: Vec<Accepted>,
    deadline: Instant,
    prices: &BTreeMap<String, i64>,
    summary: &mut Summary,
) -> Result<()> {
    summary.orders = accepted.iter().map(|accepted| accepted.order_id).collect();
    let mut open: VecDeque<Accepted> = accepted.into();
    let mut said = Instant::now();
    while !open.is_empty() && Instant::now() < deadline {
        let looked_at: Vec<Accepted> = open.drain(..open.len().min(LOOKED_AT)).collect();
        let found: Vec<(Accepted, Result<Order>)> = stream::iter(looked_at)
            .map(async |accepted| {
                let order = client.order(accepted.order_id).await;
                (accepted, order)
            })
            .buffered(16)
            .collect()
            .await;
        let mut ended = 0;
        for (accepted, order) in found.into_iter().rev() {
            match order {
                Ok(order) if order.has_ended() => {
                    ended += 1;
                    note(&accepted, &order, prices, summary);
                }
                _ => open.push_front(accepted),
            }
        }
        if ended == 0 {
            sleep(LOOK_EVERY).await;
        }
        if said.elapsed() > SAY_EVERY {
            said = Instant::now();
            eprintln!("{} orders to look at …", grouped(open.len() as u64));
        }
    }
    summary.not_ended = open.len() as u64;
    for accepted in open.iter().take(5) {
        summary.examples.push(format!("not ended: {}", accepted.order_id));
    }
    Ok(())
}

fn note(accepted: &Accepted, order: &Order, prices: &BTreeMap<String, i64>, summary: &mut Summary) {
    let total: i64 =
        accepted.lines.iter().filter_map(|line| Some(prices.get(&line.sku)? * line.quantity)).sum();
    if order.total_cents != total {
        summary.examples.push(format!("{}: {} and not {total}", order.order_id, order.total_cents));
        summary.repeats_differ += 1;
    }
    match order.reason.as_deref() {
        None => summary.confirmed += 1,
        Some(reason) => *summary.cancelled.entry(reason.to_string()).or_default() += 1,
    }
    match accepted.cancel {
        Cancel::Accepted => {
            summary.cancels_accepted += 1;
            summary.cancels_broken += u64::from(order.status != "cancelled");
        }
        Cancel::TooLate => {
            summary.cancels_too_late += 1;
            summary.cancels_broken += u64::from(order.status != "confirmed");
        }
        Cancel::None | Cancel::Unknown => {}
    }
}

impl Summary {
    /// Whether everything went as promised. Refusals are none of a load's; unknown outcomes may be,
    /// where the order service or its database was the victim, but must be settled.
    pub fn holds(&self, load: &Load) -> bool {
        let order_was_hit = load.kill.as_deref().is_some_and(|victim| victim.starts_with("order"));
        let answered = self.unknown == 0 && self.refused == 0;
        (answered || order_was_hit)
            && self.unsettled == 0
            && self.repeats_differ == 0
            && self.cancels_broken == 0
            && self.not_ended == 0
    }

    pub fn lines(&self) -> Vec<String> {
        let cancelled: Vec<String> = self
            .cancelled
            .iter()
            .map(|(reason, count)| format!("{} {reason}", grouped(*count)))
            .collect();
        let ms = |duration: Duration| format!("{:.1} ms", duration.as_secs_f64() * 1_000.0);
        let mut lines = vec![
            format!(
                "  posted        {} in {:.0} s: {} accepted, {} refused, {} unknown",
                grouped(self.placed),
                self.took.as_secs_f64(),
                grouped(self.accepted),
                grouped(self.refused),
                grouped(self.unknown)
            ),
            format!(
                "  ended         {} confirmed, {} cancelled ({}), {} not ended",
                grouped(self.confirmed),
                grouped(self.cancelled.values().sum::<u64>()),
                cancelled.join(", "),
                grouped(self.not_ended)
            ),
            format!(
                "  POST          p50 {}, p99 {}, max {}",
                ms(self.latency_p50),
                ms(self.latency_p99),
                ms(self.latency_max)
            ),
            format!(
                "  drained       {:.1} s after {}",
                self.drained_in.as_secs_f64(),
                if self.kills > 0 { "the last start" } else { "the last order" }
            ),
            format!(
                "  repeats       {} told the same, {} told something else",
                grouped(self.repeats_same),
                grouped(self.repeats_differ)
            ),
            format!(
                "  cancels       {} accepted, {} too late, {} broken",
                grouped(self.cancels_accepted),
                grouped(self.cancels_too_late),
                grouped(self.cancels_broken)
            ),
        ];
        if self.kills > 0 {
            lines.push(format!("  kills         {}", self.kills));
        }
        if self.unknown > 0 {
            lines.push(format!(
                "  unknown       {} turned out to be stored before or by asking again, {} unsettled",
                grouped(self.unknown_stored),
                grouped(self.unsettled)
            ));
        }
        lines.extend(self.examples.iter().map(|example| format!("    {example}")));
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_as_long_as_it_says_and_mixed_as_it_says() {
        let load =
            Load { rate: 50, seconds: 20, poor: 100, scarce: 0, repeated: 0, ..Load::default() };
        let plans = plans(&load);
        assert_eq!(plans.len(), 1_000);
        assert!(plans.windows(2).all(|pair| pair[0].at < pair[1].at));
        assert!(
            plans.iter().all(|plan| plan.customer_id == seed::POOR.customer_id && !plan.repeated)
        );
        for plan in &plans {
            let skus: std::collections::BTreeSet<_> =
                plan.lines.iter().map(|line| &line.sku).collect();
            assert_eq!(skus.len(), plan.lines.len(), "no article stands on two lines");
            assert!((1..=LINES_MAX).contains(&plan.lines.len()));
        }
    }
}
