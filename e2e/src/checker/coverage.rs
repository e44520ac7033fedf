//! Coverage: which interesting situations (reordering, redelivery, …) a run produced. The caller
//! decides which ones a run must contain. A run without them is inconclusive.

use std::collections::BTreeMap;

use events::participants::VOID;
use serde::{Deserialize, Serialize};

use crate::checker::expected_records::compared_topics;
use crate::checker::verdict::Verdict;

/// A situation that occurs in some runs only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Situation {
    Confirmed,
    /// The order was cancelled because of it, and stock released its reservation.
    PaymentDeclined,
    /// The order was cancelled because of it, and payment refunded the money.
    StockRejected,
    /// The customer cancelled the order: before payment handled it, after payment verified it, and
    /// after stock reserved its lines.
    CancelledBeforePayment,
    CancelledAfterPayment,
    CancelledAfterReservation,
    Deadline,
    DeadLetterReplayed,
    /// A consumer received an event that it had handled before.
    InboxConflict,
    /// A participant received the cancellation before the order.
    Tombstone,
    /// The order service received an approval of an order that was already cancelled.
    LateApproval,
    /// A relay sent a record that was already in its topic.
    RelayResend,
}

use Situation::*;

/// Every situation, as a report calls it.
const NAMES: [(Situation, &str); 12] = [
    (Confirmed, "confirmed"),
    (PaymentDeclined, "payment declined, stock released"),
    (StockRejected, "stock rejected, payment refunded"),
    (CancelledBeforePayment, "cancelled by the customer before payment"),
    (CancelledAfterPayment, "cancelled by the customer after payment"),
    (CancelledAfterReservation, "cancelled by the customer after reservation"),
    (Deadline, "cancelled by the deadline"),
    (DeadLetterReplayed, "a dead letter replayed"),
    (InboxConflict, "an event delivered a second time"),
    (Tombstone, "a tombstone before its order"),
    (LateApproval, "an approval after the cancellation"),
    (RelayResend, "a record sent again by its relay"),
];

impl Situation {
    pub fn all() -> [Situation; 12] {
        NAMES.map(|(situation, _)| situation)
    }

    pub fn name(self) -> &'static str {
        NAMES.into_iter().find(|(it, _)| *it == self).map_or("", |(_, name)| name)
    }
}

/// How often each situation occurred, at least.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Coverage {
    counts: BTreeMap<Situation, u64>,
    /// The records that were compared with rows, for each topic that has a query.
    compared: BTreeMap<String, u64>,
}

impl Coverage {
    /// The coverage shown by a verdict. `copies` is the number of duplicates that the run itself
    /// produced: they are subtracted, since the relays did not send them.
    pub fn from_verdict(verdict: &Verdict, copies: u64) -> Coverage {
        let tally = &verdict.tally;
        let ended = |reason: &str, service: &str, state: &str| -> u64 {
            let is = |is: &str, wanted: &str| wanted.is_empty() || is == wanted;
            let endings = tally.endings.iter().filter(|((why, parts), _)| {
                is(why, reason) && parts.iter().any(|(of, part)| is(of, service) && is(part, state))
            });
            endings.map(|(_, count)| count).sum()
        };
        let mut coverage = Coverage::default();
        for (situation, count) in [
            (Confirmed, tally.confirmed),
            (PaymentDeclined, ended("payment_declined", "stock", "released")),
            (StockRejected, ended("stock_rejected", "payment", "refunded")),
            (CancelledBeforePayment, ended("customer", "payment", "void")),
            (CancelledAfterPayment, ended("customer", "payment", "refunded")),
            (CancelledAfterReservation, ended("customer", "stock", "released")),
            (Deadline, ended("deadline", "", "")),
            (DeadLetterReplayed, verdict.dead_letters_replayed),
            // Each subscriber has read its topics to the end, including the duplicate.
            (InboxConflict, tally.duplicates_delivered),
            (Tombstone, ended("", "", VOID)),
            (LateApproval, tally.late_approvals),
            (RelayResend, tally.duplicates.saturating_sub(copies)),
        ] {
            coverage.record(situation, count);
        }
        for topic in compared_topics() {
            let count = tally.compared.get(topic.name).copied().unwrap_or_default();
            coverage.record_compared(topic.name, count);
        }
        coverage
    }

    pub fn record(&mut self, situation: Situation, count: u64) {
        *self.counts.entry(situation).or_default() += count;
    }

    pub fn record_compared(&mut self, topic: &str, count: u64) {
        *self.compared.entry(topic.to_string()).or_default() += count;
    }

    pub fn count(&self, situation: Situation) -> u64 {
        self.counts.get(&situation).copied().unwrap_or_default()
    }

    /// The required situations that did not occur.
    pub fn missing(&self, wanted: &[Situation]) -> Vec<Situation> {
        let is_missing = |situation: &Situation| self.count(*situation) == 0;
        wanted.iter().copied().filter(is_missing).collect()
    }

    /// The topics of which no record was compared with a row. Their queries may be wrong.
    pub fn uncompared_topics(&self) -> Vec<&str> {
        let uncompared = self.compared.iter().filter(|(_, count)| **count == 0);
        uncompared.map(|(topic, _)| topic.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_of_which_no_record_was_compared_is_named() {
        let mut coverage = Coverage::default();
        coverage.record_compared("orders.created", 3);
        coverage.record_compared("orders.confirmed", 0);
        assert_eq!(coverage.uncompared_topics(), ["orders.confirmed"]);
    }

    #[test]
    fn a_situation_that_never_occurred_is_missing() {
        let mut coverage = Coverage::default();
        coverage.record(Confirmed, 3);
        coverage.record(LateApproval, 0);
        assert_eq!(
            coverage.missing(&[Confirmed, LateApproval, Deadline]),
            [LateApproval, Deadline]
        );
    }
}
