//! The rules, broken one by one.

use crate::promises::*;

/// A broken rule. Each changes the rows that the real handlers get, or what is kept of their
/// result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    NonAtomicDedupeInPayment,
    NonAtomicDedupeInStock,
    NoTombstoneInStock,
    NoTombstoneInPayment,
    LateAcceptanceWins,
    CancelAfterConfirm,
    NoRefund,
    NoRelease,
    FirstAcceptanceDropped,
    ConfirmedOnOneAcceptance,
    PaymentRefusalIgnored,
    StockRefusalIgnored,
    LegsOnlyWhilePending,
    LegsMayGoBack,
    OvertakingCancelUnanswered,
    UnguardedDecrement,
    OffsetBeforeCommit,
    ReleasedTwice,
    RefundedTwice,
}

/// Each mutant with a promise that it breaks.
pub const MUTANTS: [(Mutant, &str); 19] = [
    (Mutant::NonAtomicDedupeInPayment, CHARGED_ONCE),
    (Mutant::NonAtomicDedupeInStock, IN_AGREEMENT),
    (Mutant::NoTombstoneInStock, IN_AGREEMENT),
    (Mutant::NoTombstoneInPayment, IN_AGREEMENT),
    (Mutant::LateAcceptanceWins, ENDS_ONCE),
    (Mutant::CancelAfterConfirm, ENDS_ONCE),
    (Mutant::NoRefund, IN_AGREEMENT),
    (Mutant::NoRelease, IN_AGREEMENT),
    (Mutant::FirstAcceptanceDropped, IN_AGREEMENT),
    (Mutant::ConfirmedOnOneAcceptance, IN_AGREEMENT),
    (Mutant::PaymentRefusalIgnored, IN_AGREEMENT),
    (Mutant::StockRefusalIgnored, IN_AGREEMENT),
    (Mutant::LegsOnlyWhilePending, IN_AGREEMENT),
    (Mutant::LegsMayGoBack, IN_AGREEMENT),
    (Mutant::OvertakingCancelUnanswered, IN_AGREEMENT),
    (Mutant::UnguardedDecrement, NEVER_NEGATIVE),
    (Mutant::OffsetBeforeCommit, IN_AGREEMENT),
    (Mutant::ReleasedTwice, HELD_ONCE),
    (Mutant::RefundedTwice, CHARGED_ONCE),
];
