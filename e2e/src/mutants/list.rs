//! The mutants: bugs that the suite has to detect. Each is a patch in `e2e/mutants/patches`, and has one detector
//! and one invariant by which the detector has to find it.

use std::path::{Path, PathBuf};

use crate::checker::invariants::Invariant::{self, *};
use crate::mutants::disturbance::Disturbance::{self, *};

/// A bug, and the detector that must find it.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    pub id: &'static str,
    pub description: &'static str,
    pub violates: Invariant,
    pub detector: Detector,
    /// The only service that has it; `None`: all services.
    pub service: Option<&'static str>,
}

/// What to run to detect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detector {
    /// A load on a stack with so many instances of each service, and a disturbance.
    Trial(Disturbance, u16),
    /// A test of the chassis, for a fault that a real broker cannot be made to have.
    Test(&'static str),
}

const fn mutant(
    id: &'static str,
    description: &'static str,
    violates: Invariant,
    disturbance: Disturbance,
) -> Mutant {
    Mutant { id, description, violates, detector: Detector::Trial(disturbance, 1), service: None }
}

/// A fault that a test of the chassis finds.
const fn tested(
    id: &'static str,
    description: &'static str,
    violates: Invariant,
    test: &'static str,
) -> Mutant {
    Mutant { detector: Detector::Test(test), ..mutant(id, description, violates, Nothing) }
}

/// The ids are only names. There is no B14: that mutant was about a payment provider, and payment
/// has none.
pub const MUTANTS: [Mutant; 24] = [
    mutant("B1", "offset stored before the commit", I13, DatabaseThenService("payment")),
    mutant("B2", "inbox in its own transaction", I7, TableLocked("payment", "payments")),
    mutant("B3", "outbox outside the transaction", I11, TableLocked("order", "orders")),
    mutant("B4", "outbox row deleted when it is sent", I8, KafkaThenService("order")),
    mutant("B5", "relay continues after the last position", I8, SlowCommits("order")),
    Mutant {
        detector: Detector::Trial(Nothing, 2),
        ..mutant("B6", "two active relays", I9, Nothing)
    },
    mutant("B7", "no tombstone in stock", I4, CancellationsFirst("stock")),
    mutant("B8", "no tombstone in payment", I5, CancellationsFirst("payment")),
    Mutant {
        detector: Detector::Trial(Nothing, 2),
        ..mutant("B9", "items not locked", I6, Nothing)
    },
    Mutant {
        service: Some("payment"),
        ..mutant("B10", "a new group skips records", I13, OffsetsLost("payment"))
    },
    mutant("B11", "the first of two responses dropped", I13, Nothing),
    mutant(
        "B12",
        "dead letter of an event that would succeed later",
        I10,
        TableLocked("payment", "payments"),
    ),
    mutant(
        "B13",
        "key outside the transaction",
        I2,
        TableLocked("order", "chassis.idempotency_keys"),
    ),
    mutant("B15", "a task ends unnoticed", I13, DatabaseKilled("payment")),
    // A real broker cannot be made to respond to a producer with an out-of-sequence error.
    tested(
        "B16",
        "a dead producer is kept",
        I13,
        "a_producer_with_a_fatal_error_is_replaced_and_loses_nothing",
    ),
    // A broker refuses the first of two requests in flight and accepts the second by chance only.
    tested(
        "B17",
        "delivery report without an offset counts as written",
        I8,
        "a_possibly_persisted_record_is_sent_again_though_the_client_reports_it_delivered",
    ),
    tested(
        "B18",
        "a cancelled timer fires",
        I7,
        "a_timer_that_is_cancelled_or_moved_after_it_was_read_does_not_fire",
    ),
    tested(
        "B19",
        "a timer is deleted before it has fired",
        I13,
        "a_timer_whose_row_is_locked_waits_by_itself_and_an_unknown_one_for_another_version",
    ),
    tested(
        "B20",
        "a key for each try of a call",
        I2,
        "a_call_is_made_with_its_decision_and_its_answer_is_heard_once_in_its_trace",
    ),
    tested(
        "B21",
        "a refusal of a repeat is believed",
        I4,
        "a_refusal_is_believed_only_if_no_earlier_try_may_have_been_done",
    ),
    tested(
        "B22",
        "a delivery without a valid signature is stored",
        I7,
        "what_its_sender_did_not_sign_is_refused_and_stores_nothing",
    ),
    tested(
        "B23",
        "a delivery has the id of an event",
        I13,
        "a_delivery_with_the_id_of_an_event_hides_no_event",
    ),
    tested(
        "B24",
        "an answered task stays open",
        I7,
        "a_task_is_answered_by_one_operator_and_heard_once",
    ),
    tested(
        "B25",
        "an answer that is not allowed is accepted",
        I10,
        "a_task_is_answered_by_one_operator_and_heard_once",
    ),
];

/// The file with the patch of a mutant.
pub fn patch_file(root: &Path, mutant: &Mutant) -> PathBuf {
    root.join("e2e/mutants/patches").join(format!("{}.patch", mutant.id))
}
