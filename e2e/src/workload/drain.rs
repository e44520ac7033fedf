//! Waits until the orders of a load have ended, and compares each with what its client asked for.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::Result;
use checker::group_digits;
use chrono::Utc;
use futures::stream::{self, StreamExt};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::checker::invariants::Invariant::{I1, I13};
use crate::client::client_history::{CancelOutcome, ClientHistory};
use crate::client::http_client::Client;
use crate::client::order::{LineRequest, Order};
use crate::client::order_plan::OrderPlan;
use crate::workload::load_summary::{LoadSummary, Percentiles};
use crate::workload::plan::Prices;

/// Orders that are polled at a time while they end.
const POLL_BATCH: usize = 64;
const POLL_INTERVAL: Duration = Duration::from_millis(100);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// An order that was accepted.
struct AcceptedOrder {
    order_id: Uuid,
    plan: OrderPlan,
    cancel: CancelOutcome,
}

impl LoadSummary {
    /// Waits until every accepted order has ended, oldest first, and records its outcome. Each
    /// order must have been decided `within` that time. Polling all of them may take longer, as
    /// long as some have ended since the last pass.
    pub async fn drain(
        &mut self,
        client: &Client,
        histories: &[ClientHistory],
        prices: &Prices,
        within: Duration,
    ) -> Result<()> {
        let (began, due) = (Instant::now(), Utc::now() + within);
        let accepted = histories.iter().filter_map(|history| {
            let order_id = history.order()?.order_id;
            Some(AcceptedOrder { order_id, cancel: history.cancel, plan: history.plan.clone() })
        });
        let mut open: Vec<AcceptedOrder> = accepted.collect();
        open.sort_unstable_by_key(|accepted| accepted.order_id);
        self.orders = open.iter().map(|accepted| accepted.order_id).collect();
        let mut open = VecDeque::from(open);
        let (mut last_progress, mut decided_in) = (began, Vec::with_capacity(open.len()));
        let mut last_ended = began;
        while !open.is_empty() && last_ended.elapsed() < within {
            let batch: Vec<AcceptedOrder> = open.drain(..open.len().min(POLL_BATCH)).collect();
            let found: Vec<(AcceptedOrder, Result<Order>)> = stream::iter(batch)
                .map(async |accepted| {
                    let order = client.get_order(accepted.order_id).await;
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
                        if let Some(at) = order.ended_at.filter(|at| *at > due) {
                            let order_id = accepted.order_id;
                            self.findings.add(I13, "late", || format!("{order_id} at {at}"));
                        }
                        let span = order.ended_at.map(|at| (at - order.created_at).to_std());
                        decided_in.extend(span.and_then(std::result::Result::ok));
                        self.record_ended(&accepted, &order, prices);
                    }
                    _ => open.push_front(accepted),
                }
            }
            match ended {
                0 => sleep(POLL_INTERVAL).await,
                _ => last_ended = Instant::now(),
            }
            if last_progress.elapsed() > PROGRESS_INTERVAL {
                last_progress = Instant::now();
                eprintln!("waiting for {} orders to end …", group_digits(open.len() as u64));
            }
        }
        self.not_ended = open.len() as u64;
        for accepted in &open {
            self.findings.add(I13, "not ended", || accepted.order_id.to_string());
        }
        self.decision_time = Percentiles::from_durations(decided_in);
        self.drained_in = began.elapsed();
        Ok(())
    }

    fn record_ended(&mut self, accepted: &AcceptedOrder, order: &Order, prices: &Prices) {
        let OrderPlan { lines, customer_id, .. } = &accepted.plan;
        let total: i64 =
            lines.iter().filter_map(|line| Some(prices.get(&line.sku)? * line.quantity)).sum();
        let placed = order
            .lines
            .iter()
            .map(|line| LineRequest { sku: line.sku.clone(), quantity: line.quantity });
        let is_as_asked = placed.eq(lines.iter().cloned())
            && order.customer_id == *customer_id
            && order.total_cents == total;
        if !is_as_asked {
            self.altered += 1;
            self.findings.add(I1, "altered", || {
                format!("the client requested {lines:?} for {total}: {order:?}")
            });
        }
        match order.reason.as_deref() {
            None => self.confirmed += 1,
            Some(reason) => *self.cancelled.entry(reason.to_string()).or_default() += 1,
        }
        let expected = match accepted.cancel {
            CancelOutcome::Accepted => {
                self.cancels_accepted += 1;
                "cancelled"
            }
            CancelOutcome::TooLate => {
                self.cancels_too_late += 1;
                "confirmed"
            }
            CancelOutcome::NotRequested | CancelOutcome::Unknown | CancelOutcome::Unexpected(_) => {
                return;
            }
        };
        if order.status != expected {
            self.cancels_broken += 1;
            self.findings.add(I1, "cancel", || {
                format!("{}: its client expects {expected}, it is {}", order.order_id, order.status)
            });
        }
    }
}
