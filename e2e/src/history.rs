//! What the clients of a load were told, taken together, and what became of their orders.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Display;
use std::time::Duration;

use anyhow::Result;
use chrono::Utc;
use futures::stream::{self, StreamExt};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::client::{Client, Order, Wish};
use crate::figures::grouped;
use crate::findings::Findings;
use crate::invariants::Invariant::{I1, I2, I13, I14};
use crate::plan::{Plan, Prices};
use crate::told::{Cancel, Told, Truth};

/// Orders looked at in one go while they end.
const LOOKED_AT: usize = 64;
const LOOK_EVERY: Duration = Duration::from_millis(100);
const SAY_EVERY: Duration = Duration::from_secs(5);
const EXAMPLES_MAX: usize = 8;

/// Beyond this the disk stood still: the order service cuts a commit after 2 s, and tells its client that
/// the outcome is unknown.
pub const STANDSTILL: Duration = Duration::from_millis(1_500);

/// How the order service's disk did, as commits of nobody's found it: while one of them waits, nobody can
/// be told of an order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Disk {
    pub slowest_commit: Duration,
    /// Standstills, all together.
    pub stood_still: Duration,
}

/// The middle, the hundredth part at the end, and the very end of many spans of time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread {
    pub p50: Duration,
    pub p99: Duration,
    pub max: Duration,
}

impl Spread {
    fn of(mut spans: Vec<Duration>) -> Spread {
        spans.sort_unstable();
        let at = |share: f64| {
            let nth = (spans.len() as f64 * share) as usize;
            spans.get(nth.min(spans.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        Spread { p50: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}

/// What became of a load.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub placed: u64,
    pub accepted: u64,
    pub refused: u64,
    /// Orders with a try that had no clear answer, and what all of them asked again.
    pub unknown: u64,
    pub asked_again: u64,
    /// Nobody could say until the end.
    pub unsettled: u64,
    /// Told the same, or something else, for the same key and body.
    pub repeats_same: u64,
    pub repeats_differ: u64,
    /// Sent once more with another body, and refused for that.
    pub others_refused: u64,
    /// Orders that are not what was asked for.
    pub altered: u64,
    pub cancels_accepted: u64,
    pub cancels_too_late: u64,
    /// Nobody said what became of them.
    pub cancels_unknown: u64,
    /// Cancelled for their client, and not for the order.
    pub cancels_broken: u64,
    pub confirmed: u64,
    pub cancelled: BTreeMap<String, u64>,
    pub not_ended: u64,
    pub took: Duration,
    pub drained_in: Duration,
    /// Of the first answers.
    pub latency: Spread,
    /// From an order's creation to its decision.
    pub decided_in: Spread,
    /// The longest time in which no order was accepted.
    pub longest_silence: Duration,
    /// Meanwhile.
    pub disk: Disk,
    /// The first refusals, doubts and faults, word for word.
    pub examples: Vec<String>,
    pub orders: Vec<Uuid>,
    /// Whatever is not as it was promised to a client.
    pub findings: Findings,
}

/// An order that was accepted.
struct Accepted {
    order_id: Uuid,
    plan: Plan,
    cancel: Cancel,
}

impl Summary {
    /// Counts what the clients were told.
    pub fn of(history: &[Told], took: Duration) -> Summary {
        let mut summary = Summary { took, placed: history.len() as u64, ..Summary::default() };
        for told in history {
            summary.count(told);
        }
        summary.latency = Spread::of(history.iter().map(Told::latency).collect());
        let mut accepted: Vec<Duration> = history.iter().filter_map(Told::accepted_at).collect();
        accepted.extend([Duration::ZERO, took]);
        accepted.sort_unstable();
        let silences = accepted.windows(2).map(|pair| pair[1] - pair[0]);
        summary.longest_silence = silences.max().unwrap_or_default();
        summary
    }

    fn count(&mut self, told: &Told) {
        if let Some(why) = told.first_doubt() {
            self.example("unknown at first", why);
            self.unknown += 1;
            let at_first = if told.plan.repeated { 2 } else { 1 };
            self.asked_again += told.tries.len().saturating_sub(at_first) as u64;
        }
        if let Some((yes, other)) = told.contradiction() {
            self.repeats_differ += 1;
            self.findings.add(I2, "told differently", || {
                format!("key {}: {yes}, and {other}", told.plan.key)
            });
        } else if told.yeses().len() > 1 {
            self.repeats_same += 1;
        }
        if let Some(failure) = told.failure() {
            self.findings.add(I14, "failed", || format!("key {}: {failure}", told.plan.key));
        }
        match told.cancel {
            Cancel::Unknown => self.cancels_unknown += 1,
            Cancel::Denied(status) => self.findings.add(I1, "cancel", || {
                format!("key {}: its cancel was answered {status}", told.plan.key)
            }),
            Cancel::None | Cancel::Accepted | Cancel::TooLate => {}
        }
        match told.truth() {
            Truth::Accepted(_) => self.accepted += 1,
            Truth::Refused(answer) => {
                self.example("refused", answer);
                self.refused += 1;
            }
            Truth::Unsettled => {
                self.unsettled += 1;
                self.findings.add(I13, "unsettled", || {
                    format!("key {} was never told what became of its order", told.plan.key)
                });
            }
        }
        let other = told.other.as_ref();
        self.others_refused += u64::from(other.is_some_and(|other| other.status() == Some(422)));
    }

    fn example(&mut self, what: &str, why: &dyn Display) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(format!("{what}: {why}"));
        }
    }

    /// Waits until every accepted order has ended, oldest first, and notes how. Each must have been
    /// decided `within` that time; to look at all of them may take longer, as long as some are found
    /// to have ended.
    pub async fn drain(
        &mut self,
        client: &Client,
        history: &[Told],
        prices: &Prices,
        within: Duration,
    ) -> Result<()> {
        let (began, due) = (Instant::now(), Utc::now() + within);
        let accepted = history.iter().filter_map(|told| {
            let order_id = told.order()?.order_id;
            Some(Accepted { order_id, cancel: told.cancel, plan: told.plan.clone() })
        });
        let mut open: Vec<Accepted> = accepted.collect();
        open.sort_unstable_by_key(|accepted| accepted.order_id);
        self.orders = open.iter().map(|accepted| accepted.order_id).collect();
        let mut open = VecDeque::from(open);
        let (mut said, mut decided_in) = (began, Vec::with_capacity(open.len()));
        let mut last_ended = began;
        while !open.is_empty() && last_ended.elapsed() < within {
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
                        if let Some(at) = order.ended_at.filter(|at| *at > due) {
                            let order_id = accepted.order_id;
                            self.findings.add(I13, "late", || format!("{order_id} at {at}"));
                        }
                        let span = order.ended_at.map(|at| (at - order.created_at).to_std());
                        decided_in.extend(span.and_then(std::result::Result::ok));
                        self.note(&accepted, &order, prices);
                    }
                    _ => open.push_front(accepted),
                }
            }
            match ended {
                0 => sleep(LOOK_EVERY).await,
                _ => last_ended = Instant::now(),
            }
            if said.elapsed() > SAY_EVERY {
                said = Instant::now();
                eprintln!("{} orders to look at …", grouped(open.len() as u64));
            }
        }
        self.not_ended = open.len() as u64;
        for accepted in &open {
            self.findings.add(I13, "not ended", || accepted.order_id.to_string());
        }
        self.decided_in = Spread::of(decided_in);
        self.drained_in = began.elapsed();
        Ok(())
    }

    fn note(&mut self, accepted: &Accepted, order: &Order, prices: &Prices) {
        let Plan { lines, customer_id, .. } = &accepted.plan;
        let total: i64 =
            lines.iter().filter_map(|line| Some(prices.get(&line.sku)? * line.quantity)).sum();
        let wished =
            order.lines.iter().map(|line| Wish { sku: line.sku.clone(), quantity: line.quantity });
        let is_as_asked = wished.eq(lines.iter().cloned())
            && order.customer_id == *customer_id
            && order.total_cents == total;
        if !is_as_asked {
            self.altered += 1;
            self.findings
                .add(I1, "altered", || format!("asked were {lines:?} for {total}: {order:?}"));
        }
        match order.reason.as_deref() {
            None => self.confirmed += 1,
            Some(reason) => *self.cancelled.entry(reason.to_string()).or_default() += 1,
        }
        let told = match accepted.cancel {
            Cancel::Accepted => {
                self.cancels_accepted += 1;
                "cancelled"
            }
            Cancel::TooLate => {
                self.cancels_too_late += 1;
                "confirmed"
            }
            Cancel::None | Cancel::Unknown | Cancel::Denied(_) => return,
        };
        if order.status != told {
            self.cancels_broken += 1;
            self.findings.add(I1, "cancel", || {
                format!("{}: its client was told {told}, it is {}", order.order_id, order.status)
            });
        }
    }

    /// Whether every promise to a client was kept: doubts settled, all answers for one key alike, and
    /// every accepted order ended as it was meant.
    pub fn holds(&self) -> bool {
        self.findings.is_empty()
    }

    /// Whether nobody was refused or left without an answer, as it must be unless the order service
    /// or its database was away, or the disk stood still.
    pub fn answered_all(&self) -> bool {
        self.unknown + self.refused + self.cancels_unknown <= self.excused()
    }

    /// How many orders came while the disk stood still, or so shortly before that it may have cost them
    /// their answer: within the 3 s in which commands are tried, which is twice a standstill at most.
    pub fn excused(&self) -> u64 {
        let rate = self.placed as f64 / self.took.as_secs_f64().max(1.0);
        (3.0 * self.disk.stood_still.as_secs_f64() * rate).ceil() as u64
    }

    pub fn lines(&self) -> Vec<String> {
        let cancelled: Vec<String> = self
            .cancelled
            .iter()
            .map(|(reason, count)| format!("{} {reason}", grouped(*count)))
            .collect();
        let ms = |span: Duration| format!("{:.1} ms", span.as_secs_f64() * 1_000.0);
        let spread =
            |of: &Spread| format!("p50 {}, p99 {}, max {}", ms(of.p50), ms(of.p99), ms(of.max));
        let mut lines = vec![
            format!(
                "  posted        {} in {:.0} s: {} accepted, {} refused, {} unsettled",
                grouped(self.placed),
                self.took.as_secs_f64(),
                grouped(self.accepted),
                grouped(self.refused),
                grouped(self.unsettled)
            ),
            format!(
                "  unknown       {} at first, asked again {} times until all were settled",
                grouped(self.unknown),
                grouped(self.asked_again)
            ),
            format!(
                "  ended         {} confirmed, {} cancelled ({}), {} not ended, {} altered",
                grouped(self.confirmed),
                grouped(self.cancelled.values().sum::<u64>()),
                cancelled.join(", "),
                grouped(self.not_ended),
                grouped(self.altered)
            ),
            format!("  POST          {}", spread(&self.latency)),
            format!("  POST to end   {}", spread(&self.decided_in)),
            format!("  drained       in {:.1} s", self.drained_in.as_secs_f64()),
            format!(
                "  repeats       {} told the same, {} told something else; {} with another body refused",
                grouped(self.repeats_same),
                grouped(self.repeats_differ),
                grouped(self.others_refused)
            ),
            format!(
                "  cancels       {} accepted, {} too late, {} unknown, {} broken",
                grouped(self.cancels_accepted),
                grouped(self.cancels_too_late),
                grouped(self.cancels_unknown),
                grouped(self.cancels_broken)
            ),
        ];
        if self.unsettled > 0 {
            lines[1] = format!(
                "  unknown       {} at first, asked again {} times, {} never settled",
                grouped(self.unknown),
                grouped(self.asked_again),
                grouped(self.unsettled)
            );
        }
        if self.excused() > 0 {
            lines.push(format!(
                "  disk          stood still for {}, {} at worst: {} refusals and doubts are excused",
                ms(self.disk.stood_still),
                ms(self.disk.slowest_commit),
                grouped(self.excused())
            ));
        }
        lines.extend(self.examples.iter().map(|example| format!("    {example}")));
        lines.extend(self.findings.lines());
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::Load;
    use crate::outcome::{Answer, Outcome};
    use crate::plan;
    use crate::told::Try;

    fn answer(status: u16, body: &str) -> Answer {
        let body = body.as_bytes().to_vec();
        Answer { status, location: None, content_type: String::new(), body }
    }

    fn told(outcomes: &[Outcome]) -> Told {
        let tries = outcomes.iter().zip(1..).map(|(outcome, nth)| Try {
            outcome: outcome.clone(),
            answered_at: Duration::from_secs(nth),
        });
        let load = Load { rate: 1, lasting: Duration::from_secs(1), ..Load::default() };
        Told::new(&plan::draw(&load)[0], tries.collect())
    }

    #[test]
    fn two_yeses_that_differ_are_no_truth_and_a_late_one_is_a_silence() {
        let ok = |body: &str| Outcome::Ok(answer(201, body));
        let doubt = Outcome::Unknown("cut".to_string());
        let history = [told(&[ok("a"), ok("a")]), told(&[doubt.clone(), doubt, ok("b"), ok("c")])];
        let summary = Summary::of(&history, Duration::from_secs(9));
        assert_eq!((summary.repeats_same, summary.repeats_differ), (1, 1));
        assert_eq!((summary.accepted, summary.unknown, summary.unsettled), (2, 1, 0));
        assert_eq!(summary.longest_silence, Duration::from_secs(6));
        assert!(!summary.holds());
    }
}
