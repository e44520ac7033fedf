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

/// The ids are only names. There is no B14: that mutant was about a payment provider, and payment
/// has none.
pub const MUTANTS: [Mutant; 18] = [
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
    Mutant {
        // A real broker cannot be made to respond to a producer with an out-of-sequence error.
        detector: Detector::Test("a_producer_with_a_fatal_error_is_replaced_and_loses_nothing"),
        ..mutant("B16", "a dead producer is kept", I13, Nothing)
    },
    Mutant {
        // A broker refuses the first of two requests in flight and accepts the second by chance only.
        detector: Detector::Test(
            "a_possibly_persisted_record_is_sent_again_though_the_client_reports_it_delivered",
        ),
        ..mutant("B17", "delivery report without an offset counts as written", I8, Nothing)
    },
    Mutant {
        detector: Detector::Test(
            "a_timer_that_is_cancelled_or_moved_after_it_was_read_does_not_fire",
        ),
        ..mutant("B18", "a cancelled timer fires", I7, Nothing)
    },
    Mutant {
        detector: Detector::Test(
            "a_timer_whose_row_is_locked_waits_by_itself_and_an_unknown_one_for_another_version",
        ),
        ..mutant("B19", "a timer is deleted before it has fired", I13, Nothing)
    },
];

/// The file with the patch of a mutant.
pub fn patch_file(root: &Path, mutant: &Mutant) -> PathBuf {
    root.join("e2e/mutants/patches").join(format!("{}.patch", mutant.id))
}
