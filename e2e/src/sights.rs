//! What was seen to happen: a run in which nothing overtook anything, and nothing was sent or heard
//! twice, proves little. What a run must have seen is for its caller to say; one that lacks some of
//! it is inconclusive, and not green.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::verdict::Verdict;

/// Something that happens sometimes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Sight {
    Confirmed,
    /// Cancelled because of it, and what stock held was released.
    PaymentDeclined,
    /// Cancelled because of it, and what payment took was refunded.
    StockRejected,
    /// Cancelled by the customer before payment heard of the order, after it had said yes, and after
    /// stock had.
    CancelledBeforePayment,
    CancelledAfterPayment,
    CancelledAfterReservation,
    Deadline,
    LetterReplayed,
    /// An event came to a consumer that had handled it.
    InboxConflict,
    /// A cancellation came to payment or stock before its order did.
    Tombstone,
    /// A yes came to an order that was cancelled by then.
    LateYes,
    /// A relay sent what lay in its topic already.
    RelayResend,
}

use Sight::*;

impl Sight {
    pub const ALL: [Sight; 12] = [
        Confirmed,
        PaymentDeclined,
        StockRejected,
        CancelledBeforePayment,
        CancelledAfterPayment,
        CancelledAfterReservation,
        Deadline,
        LetterReplayed,
        InboxConflict,
        Tombstone,
        LateYes,
        RelayResend,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Confirmed => "confirmed",
            PaymentDeclined => "payment declined, stock released",
            StockRejected => "stock rejected, payment refunded",
            CancelledBeforePayment => "cancelled by the customer before payment",
            CancelledAfterPayment => "cancelled by the customer after payment",
            CancelledAfterReservation => "cancelled by the customer after reservation",
            Deadline => "cancelled by the deadline",
            LetterReplayed => "a dead letter replayed",
            InboxConflict => "an event that had been handled",
            Tombstone => "a tombstone before its order",
            LateYes => "a yes after the cancellation",
            RelayResend => "a record sent again",
        }
    }
}

/// How often each was seen, at least.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sights {
    seen: BTreeMap<Sight, u64>,
}

impl Sights {
    /// What a verdict tells of it, and how many records lie twice in their topics because the run itself
    /// wrote them again: that is none of the relays' doing.
    pub fn of(verdict: &Verdict, copies: u64) -> Sights {
        let tally = &verdict.tally;
        let ended = |reason: &str, payment: &str, stock: &str| -> u64 {
            let is = |is: &str, wanted: &str| wanted.is_empty() || is == wanted;
            let endings = tally.endings.iter();
            let of = endings.filter(|([why, paid, held], _)| {
                is(why, reason) && is(paid, payment) && is(held, stock)
            });
            of.map(|(_, count)| count).sum()
        };
        let mut sights = Sights::default();
        for (sight, count) in [
            (Confirmed, tally.confirmed),
            (PaymentDeclined, ended("payment_declined", "", "released")),
            (StockRejected, ended("stock_rejected", "refunded", "")),
            (CancelledBeforePayment, ended("customer", "void", "")),
            (CancelledAfterPayment, ended("customer", "refunded", "")),
            (CancelledAfterReservation, ended("customer", "", "released")),
            (Deadline, ended("deadline", "", "")),
            (LetterReplayed, verdict.letters_replayed),
            // Each subscriber has read it to the end, and so the repeat too.
            (InboxConflict, tally.repeats_heard),
            (Tombstone, ended("", "void", "") + ended("", "", "void") - ended("", "void", "void")),
            (LateYes, tally.late_yeses),
            (RelayResend, tally.repeats.saturating_sub(copies)),
        ] {
            sights.saw(sight, count);
        }
        sights
    }

    pub fn saw(&mut self, sight: Sight, count: u64) {
        *self.seen.entry(sight).or_default() += count;
    }

    pub fn count(&self, sight: Sight) -> u64 {
        self.seen.get(&sight).copied().unwrap_or_default()
    }

    /// What of this was never seen.
    pub fn lacks(&self, wanted: &[Sight]) -> Vec<Sight> {
        let is_missing = |sight: &Sight| self.count(*sight) == 0;
        wanted.iter().copied().filter(is_missing).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_seen_is_lacking() {
        let mut sights = Sights::default();
        sights.saw(Confirmed, 3);
        sights.saw(LateYes, 0);
        assert_eq!(sights.lacks(&[Confirmed, LateYes, Deadline]), [LateYes, Deadline]);
    }
}
