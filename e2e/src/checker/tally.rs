//! The context of the checks of an order, and the totals over all orders.

use std::collections::{BTreeMap, BTreeSet};

use checker::dead_letters::DeadLetterIndex;
use chrono::{DateTime, Utc};
use uuid::Uuid;

use crate::checker::erasures::{ErasedRecords, Erasures};

/// What the checks need beside an order's case.
pub struct CheckContext<'a> {
    pub dead_letters: &'a DeadLetterIndex,
    pub erasures: &'a Erasures,
    /// Events older than this may have left their topics.
    pub retained_since: DateTime<Utc>,
    /// The largest difference between the clocks of the brokers, in milliseconds.
    pub clock_skew_ms: i64,
    /// The services whose connector sends the records of several topics at once.
    pub carried_by_connector: BTreeSet<&'static str>,
}

/// Totals over all orders.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    pub pending: u64,
    pub confirmed: u64,
    pub confirmed_cents: i128,
    /// By reason.
    pub cancelled: BTreeMap<String, u64>,
    /// By participant and the state of its row.
    pub parts: BTreeMap<&'static str, BTreeMap<String, u64>>,
    /// Records of orders that were compared with their rows, by topic.
    pub compared: BTreeMap<&'static str, u64>,
    /// Orders by their ending: reason (empty if confirmed), and the state of each participant's row.
    pub endings: BTreeMap<(String, BTreeMap<&'static str, String>), u64>,
    /// Duplicates that were not republished, and how many of them have a subscriber.
    pub duplicates: u64,
    pub duplicates_delivered: u64,
    /// Orders that received an approval after their cancellation.
    pub late_approvals: u64,
    /// Events without a response of a service so far, by service. An inbox entry of such an event
    /// is a violation: it had no effect.
    pub unanswered: BTreeSet<(&'static str, Uuid)>,
    /// Confirmed orders whose records belong to one trace.
    pub traced: u64,
    /// Valid records that no row records and that have a dead letter.
    pub dead_lettered: u64,
    /// Records with the id of an erased customer.
    pub erased: ErasedRecords,
    /// Events older than the retention of their topics.
    pub expired: u64,
}
