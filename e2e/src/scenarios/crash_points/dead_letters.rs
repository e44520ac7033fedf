//! Dead letters that are created and settled by services that crash meanwhile. The database refuses
//! the payments of one customer for a while: each of these events becomes a dead letter that can be
//! replayed later. Undecodable bytes become dead letters that can only be discarded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use chassis::event::Topic;
use events::{orders, stock};
use futures::future::try_join_all;
use launcher::eventually;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::list::{DEAD_LETTERS, DISCARD, REPLAY};
use super::rounds::{
    ARMED_SERVICES, CrashPointContext, CrashPointRound, STEP_TIMEOUT, place_orders, wait_for_all,
};
use crate::admin::dead_letters::{self, DeadLetterCommand, by_hand};
use crate::checker::run;
use crate::client::order::Order;
use crate::workload::load;

/// The topics with poison: one that payment and stock read, and one that order reads.
const POISONED_TOPICS: [&Topic; 2] = [&orders::CREATED, &stock::RELEASED];

/// The only service that refuses valid events, so the only one with dead letters to replay.
const FAILING_SERVICE: &str = "payment";

const POISON_INTERVAL: Duration = Duration::from_millis(500);
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Creates the dead letters, then settles all of them.
pub async fn create_and_settle(
    context: &CrashPointContext<'_>,
) -> Result<(CrashPointRound, CrashPointRound)> {
    // Too few to pause a consumer, and enough for the last hit.
    let count = context.hits.iter().max().copied().unwrap_or(1) as usize + 1;
    let before = run::dead_letter_positions(&context.client).await?;
    ensure!(before.is_empty(), "{} dead letters are of valid events", before.len());
    let customer_id = Uuid::now_v7();
    context.client.deposit(customer_id, 1_000_000, &customer_id.to_string()).await?;
    run_sql(
        context,
        format!(
            "alter table payments add constraint refused_customer
             check (customer_id <> '{customer_id}' or state <> 'verified') not valid"
        ),
    )
    .await?;
    let (created, orders) = create_dead_letters(context, customer_id, count).await?;
    eventually("a dead letter of each refused payment", STEP_TIMEOUT, async || {
        let dead_letters = waiting_dead_letters(context, FAILING_SERVICE).await?;
        let refused = dead_letters
            .iter()
            .filter(|dead_letter| dead_letter["kind"] == "handler_failed")
            .count();
        ensure!(refused == count, "{refused} of {count}");
        Ok(())
    })
    .await?;
    run_sql(context, "alter table payments drop constraint refused_customer".to_string()).await?;
    let mut round = settle_dead_letters(context).await?;
    // These are all of them; no more may follow.
    round.expected_dead_letters = run::dead_letter_positions(&context.client).await?;
    wait_for_all(&context.client, &orders, "an order whose dead letter was replayed", |order| {
        order.status == "confirmed"
    })
    .await?;
    Ok((created, round))
}

async fn create_dead_letters(
    context: &CrashPointContext<'_>,
    customer_id: Uuid,
    count: usize,
) -> Result<(CrashPointRound, Vec<Order>)> {
    let armed = context.arm("dead-letters", &ARMED_SERVICES, &DEAD_LETTERS, context.hits)?;
    let (summary, orders) = load::run_while(&context.client, &context.background_load(), async {
        let orders = place_orders(&context.client, customer_id, count).await?;
        let over = AtomicBool::new(false);
        let poisoning = async {
            // One at a time: records that are read together are one hit.
            for nth in 0.. {
                if nth >= count && over.load(Ordering::Relaxed) {
                    break;
                }
                for topic in POISONED_TOPICS {
                    by_hand::produce_poison(context.stack, topic, &mut Vec::new()).await?;
                }
                sleep(POISON_INTERVAL).await;
            }
            anyhow::Ok(())
        };
        let killed = async {
            try_join_all(armed.iter().map(|armed| armed.run_until_killed(context.timeout))).await?;
            over.store(true, Ordering::Relaxed);
            Ok(())
        };
        tokio::try_join!(poisoning, killed)?;
        Ok(orders)
    })
    .await?;
    Ok((CrashPointRound::new(&armed, Some(summary))?, orders))
}

async fn settle_dead_letters(context: &CrashPointContext<'_>) -> Result<CrashPointRound> {
    let mut armed = Vec::new();
    for service in ARMED_SERVICES {
        let replayed: &[&str] = if service == FAILING_SERVICE { &REPLAY } else { &[] };
        let points = [replayed, &DISCARD].concat();
        armed.extend(context.arm("settling", &[service], &points, context.hits)?);
    }
    for armed in &armed {
        armed.stop().await?;
    }
    let over = AtomicBool::new(false);
    let settling = async {
        try_join_all(ARMED_SERVICES.map(|service| settle_service(context, service))).await?;
        over.store(true, Ordering::Relaxed);
        Ok(())
    };
    let kept_alive = try_join_all(armed.iter().map(|armed| armed.keep_alive(&over)));
    tokio::try_join!(kept_alive, settling)?;
    for armed in &armed {
        armed.disarm().await?;
    }
    CrashPointRound::new(&armed, None)
}

/// Replays or discards every dead letter of a service, and repeats a request without a response.
async fn settle_service(context: &CrashPointContext<'_>, service: &str) -> Result<()> {
    let deadline = Instant::now() + context.timeout;
    loop {
        let waits = waiting_dead_letters(context, service).await;
        if waits.as_ref().is_ok_and(Vec::is_empty) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "dead letters of {service} still wait: {waits:?}");
        for dead_letter in waits.unwrap_or_default() {
            let (service, id) =
                (service.to_string(), dead_letter["dead_letter_id"].as_i64().unwrap_or(0));
            let command = match dead_letter["kind"] == "handler_failed" {
                true => DeadLetterCommand::Replay { service, id: id.to_string() },
                false => DeadLetterCommand::Discard {
                    service,
                    id,
                    reason: "a test".to_string(),
                    yes: true,
                    cancel: false,
                    write_off: false,
                },
            };
            // Whatever the result, the next pass reads the waiting ones again.
            if dead_letters::run(context.stack, &command, &mut Vec::new()).await.is_err() {
                break;
            }
        }
        sleep(RETRY_INTERVAL).await;
    }
}

/// The waiting dead letters of a service.
async fn waiting_dead_letters(
    context: &CrashPointContext<'_>,
    service: &str,
) -> Result<Vec<Value>> {
    let operators = &context.client.addresses.admins[service];
    let mut page: Value =
        context.client.get_url(&format!("{operators}/dead-letters?limit=1000")).await?;
    let dead_letters = page["dead_letters"].take();
    Ok(dead_letters.as_array().cloned().unwrap_or_default())
}

/// Executes a statement in payment's database.
async fn run_sql(context: &CrashPointContext<'_>, statement: String) -> Result<()> {
    let command = DeadLetterCommand::Sql { service: "payment".to_string(), statement };
    dead_letters::run(context.stack, &command, &mut Vec::new()).await.map(drop)
}
