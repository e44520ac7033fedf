//! Dead letters that are created and settled by services that crash meanwhile. The database refuses
//! the payments of one customer for a while: each of these events becomes a dead letter that can be
//! replayed later. Undecodable bytes become dead letters that can only be discarded.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use chassis::event::Event;
use events::orders::OrderCreated;
use events::stock::StockReleased;
use futures::future::try_join_all;
use launcher::eventually;
use ops_client::{DeadLetterFilter, DeadLetterSummary};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use super::list::{DEAD_LETTERS, DISCARD, REPLAY};
use super::rounds::{
    ARMED_SERVICES, BACKGROUND_RATE, CrashPointRun, STEP_TIMEOUT, kill_all, place_orders,
    wait_for_all,
};
use crate::admin::dead_letters::by_hand;
use crate::checker::run;
use crate::client::operator::Operator;
use crate::client::order::Order;
use crate::scenarios::order_faults;

/// The only service that refuses valid events, so the only one with dead letters to replay.
const FAILING_SERVICE: &str = "payment";

const POISON_INTERVAL: Duration = Duration::from_millis(500);
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

impl CrashPointRun<'_> {
    /// Creates the dead letters, then settles all of them.
    pub async fn kill_at_dead_letters(&mut self) -> Result<()> {
        let (stack, client) = (self.run.stack, self.run.client.clone());
        // Too few to pause a consumer, and enough for the last hit.
        let count = self.hits.iter().max().copied().unwrap_or(1) as usize + 1;
        let before = run::dead_letter_positions(&client).await?;
        ensure!(before.is_empty(), "{} dead letters are of valid events", before.len());
        let customer_id = Uuid::now_v7();
        client.deposit(customer_id, 1_000_000, &customer_id.to_string()).await?;
        let others = format!("customer_id <> '{customer_id}' or state <> 'verified'");
        order_faults::apply_bad_migration(stack, &others).await?;
        let orders = self.create_dead_letters(customer_id, count).await?;
        let operator = Operator::for_stack(stack)?;
        eventually("a dead letter of each refused payment", STEP_TIMEOUT, async || {
            let letters = waiting_dead_letters(&operator, FAILING_SERVICE).await?;
            let refused = letters.iter().filter(|it| it.kind == "handler_failed").count();
            ensure!(refused == count, "{refused} of {count}");
            Ok(())
        })
        .await?;
        order_faults::revert_bad_migration(stack).await?;
        self.settle_dead_letters().await?;
        // These are all of them; no more may follow.
        self.expected_dead_letters = run::dead_letter_positions(&client).await?;
        let is_confirmed = |order: &Order| order.status == "confirmed";
        wait_for_all(&client, &orders, "an order whose dead letter was replayed", is_confirmed)
            .await
    }

    async fn create_dead_letters(&mut self, customer_id: Uuid, count: usize) -> Result<Vec<Order>> {
        let armed = self.arm("dead-letters", &ARMED_SERVICES, &DEAD_LETTERS, self.hits)?;
        let (stack, client, timeout) = (self.run.stack, self.run.client.clone(), self.timeout);
        let creating = async {
            let orders = place_orders(&client, customer_id, count).await?;
            let over = AtomicBool::new(false);
            let poisoning = async {
                // One at a time: records that are read together are one hit.
                for nth in 0.. {
                    if nth >= count && over.load(Ordering::Relaxed) {
                        break;
                    }
                    // One that payment and stock read, and one that order reads.
                    for topic in [OrderCreated::topic(), StockReleased::topic()] {
                        by_hand::produce_poison(stack, topic, &mut Vec::new()).await?;
                    }
                    sleep(POISON_INTERVAL).await;
                }
                anyhow::Ok(())
            };
            let killed = async {
                kill_all(&armed, timeout).await?;
                over.store(true, Ordering::Relaxed);
                Ok(())
            };
            tokio::try_join!(poisoning, killed)?;
            Ok(orders)
        };
        let orders = self.load_while(BACKGROUND_RATE, creating).await?;
        self.add_kills(&armed)?;
        Ok(orders)
    }

    async fn settle_dead_letters(&mut self) -> Result<()> {
        let mut armed = Vec::new();
        for service in ARMED_SERVICES {
            let replayed: &[&str] = if service == FAILING_SERVICE { &REPLAY } else { &[] };
            let points = [replayed, &DISCARD].concat();
            armed.extend(self.arm("settling", &[service], &points, self.hits)?);
        }
        for armed in &armed {
            armed.stop().await?;
        }
        let over = AtomicBool::new(false);
        let settling = async {
            try_join_all(ARMED_SERVICES.map(|service| self.settle_service(service))).await?;
            over.store(true, Ordering::Relaxed);
            Ok(())
        };
        let kept_alive = try_join_all(armed.iter().map(|armed| armed.keep_alive(&over)));
        tokio::try_join!(kept_alive, settling)?;
        for armed in &armed {
            armed.disarm().await?;
        }
        self.add_kills(&armed)
    }

    /// Replays or discards every dead letter of a service, and repeats a request without a response.
    async fn settle_service(&self, service: &str) -> Result<()> {
        let operator = Operator::for_stack(self.run.stack)?;
        let deadline = Instant::now() + self.timeout;
        loop {
            let waits = waiting_dead_letters(&operator, service).await;
            if waits.as_ref().is_ok_and(Vec::is_empty) {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "dead letters of {service} still wait: {waits:?}");
            for dead_letter in waits.unwrap_or_default() {
                let (ops, id) = (operator.ask()?, dead_letter.dead_letter_id);
                let settled = match dead_letter.kind == "handler_failed" {
                    true => ops.replay(service, id).await,
                    false => ops.discard(service, id, "a test", false).await,
                };
                // Whatever the result, the next pass reads the waiting ones again.
                if settled.is_err_and(|error| error.status().is_none()) {
                    break;
                }
            }
            sleep(RETRY_INTERVAL).await;
        }
    }
}

/// The waiting dead letters of a service.
async fn waiting_dead_letters(
    operator: &Operator,
    service: &str,
) -> Result<Vec<DeadLetterSummary>> {
    let page = operator.ask()?.dead_letters(service, &DeadLetterFilter::default(), 1000).await?;
    Ok(page.dead_letters)
}
