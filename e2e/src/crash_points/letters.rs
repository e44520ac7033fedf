//! Dead letters, set aside and settled by services that die over them. Of a customer whose payments
//! the database refuses for a while, each event becomes a letter that can be replayed later; bytes
//! that are no event become letters that can only be discarded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use chassis::event::Topic;
use events::{orders, stock};
use futures::future::try_join_all;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::points::{DISCARD, LETTERS, REPLAY};
use super::rounds::{ARMED, Round, SOON, Site, all_read, place};
use crate::client::Order;
use crate::letters::{self, Command};
use crate::wait::eventually;
use crate::{load, verify};

/// Poison lies in a topic that payment and stock hear, and in one that order hears.
const POISONED: [&Topic; 2] = [&orders::CREATED, &stock::RELEASED];

/// The only one that refuses good events, so the only one that has any to replay.
const SPOILT: &str = "payment";

const POISONED_EVERY: Duration = Duration::from_millis(500);
const ASKED_EVERY: Duration = Duration::from_millis(200);

/// Sets letters aside, then settles all of them.
pub async fn set_aside_and_settled(site: &Site<'_>) -> Result<(Round, Round)> {
    // Fewer than make a consumer pause, and enough for the last hit.
    let count = site.hits.iter().max().copied().unwrap_or(1) as usize + 1;
    let before = verify::letters_now(&site.client).await?;
    ensure!(before.is_empty(), "{} dead letters were made of good events", before.len());
    let customer_id = Uuid::now_v7();
    site.client.deposit(customer_id, 1_000_000, &customer_id.to_string()).await?;
    sql(
        site,
        format!(
            "alter table payments add constraint spoilt
             check (customer_id <> '{customer_id}' or state <> 'verified') not valid"
        ),
    )
    .await?;
    let (set_aside, orders) = set_aside(site, customer_id, count).await?;
    eventually("a letter of each refused payment", SOON, async || {
        let letters = waiting(site, SPOILT).await?;
        let refused = letters.iter().filter(|letter| letter["kind"] == "failing").count();
        ensure!(refused == count, "{refused} of {count}");
        Ok(())
    })
    .await?;
    sql(site, "alter table payments drop constraint spoilt".to_string()).await?;
    let mut settled = settled(site).await?;
    // What lies there now was put there; nothing may follow.
    settled.spoiled = verify::letters_now(&site.client).await?;
    all_read(&site.client, &orders, "an order whose letter was replayed", |order| {
        order.status == "confirmed"
    })
    .await?;
    Ok((set_aside, settled))
}

async fn set_aside(
    site: &Site<'_>,
    customer_id: Uuid,
    count: usize,
) -> Result<(Round, Vec<Order>)> {
    let armed = site.arm("letters", &ARMED, &LETTERS, site.hits)?;
    let (summary, orders) = load::run_while(&site.client, &site.load_beside(), async {
        let orders = place(&site.client, customer_id, count).await?;
        let over = AtomicBool::new(false);
        let poisoning = async {
            // One at a time: those that are read together are one hit.
            for nth in 0.. {
                if nth >= count && over.load(Ordering::Relaxed) {
                    break;
                }
                for topic in POISONED {
                    letters::poison(site.stack, topic, &mut Vec::new()).await?;
                }
                sleep(POISONED_EVERY).await;
            }
            anyhow::Ok(())
        };
        let killed = async {
            try_join_all(armed.iter().map(|armed| armed.killed_at_each(site.within))).await?;
            over.store(true, Ordering::Relaxed);
            Ok(())
        };
        tokio::try_join!(poisoning, killed)?;
        Ok(orders)
    })
    .await?;
    Ok((Round::of(&armed, Some(summary))?, orders))
}

async fn settled(site: &Site<'_>) -> Result<Round> {
    let mut armed = Vec::new();
    for service in ARMED {
        let replayed: &[&str] = if service == SPOILT { &REPLAY } else { &[] };
        let points = [replayed, &DISCARD].concat();
        armed.extend(site.arm("settling", &[service], &points, site.hits)?);
    }
    for armed in &armed {
        armed.stop().await?;
    }
    let over = AtomicBool::new(false);
    let settling = async {
        try_join_all(ARMED.map(|service| settle_all(site, service))).await?;
        over.store(true, Ordering::Relaxed);
        Ok(())
    };
    let kept_alive = try_join_all(armed.iter().map(|armed| armed.keep_alive(&over)));
    tokio::try_join!(kept_alive, settling)?;
    for armed in &armed {
        armed.disarm().await?;
    }
    Round::of(&armed, None)
}

/// Replays or discards every letter of a service, asking again whenever there is no answer.
async fn settle_all(site: &Site<'_>, service: &str) -> Result<()> {
    let deadline = Instant::now() + site.within;
    loop {
        let waits = waiting(site, service).await;
        if waits.as_ref().is_ok_and(Vec::is_empty) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "letters of {service} still wait: {waits:?}");
        for letter in waits.unwrap_or_default() {
            let (service, id) = (service.to_string(), letter["letter_id"].as_i64().unwrap_or(0));
            let command = match letter["kind"] == "failing" {
                true => Command::Replay { service, id: id.to_string() },
                false => Command::Discard {
                    service,
                    id,
                    because: "a test".to_string(),
                    yes: true,
                    cancel: false,
                    write_off: false,
                },
            };
            // Whatever came of it, those that still wait are looked at again.
            if letters::run(site.stack, &command, &mut Vec::new()).await.is_err() {
                break;
            }
        }
        sleep(ASKED_EVERY).await;
    }
}

/// The letters of a service that wait for an operator.
async fn waiting(site: &Site<'_>, service: &str) -> Result<Vec<Value>> {
    let operators = &site.client.addresses.operators[service];
    let mut page: Value = site.client.get(&format!("{operators}/dead-letters?limit=1000")).await?;
    let letters = page["dead_letters"].take();
    Ok(letters.as_array().cloned().unwrap_or_default())
}

/// In payment's database.
async fn sql(site: &Site<'_>, statement: String) -> Result<()> {
    let command = Command::Sql { service: "payment".to_string(), statement };
    letters::run(site.stack, &command, &mut Vec::new()).await.map(drop)
}
