//! The mutants: bugs that the suite has to detect. Each is a patch in `e2e/mutants/patches`, and has one detector
//! and one invariant by which the detector has to find it.

use std::path::{Path, PathBuf};

use crate::checker::invariants::Invariant::{self, *};
use crate::mutants::trial::{Disturbance, MutantTrial};

/// A bug, and what has to detect it.
#[derive(Clone, Copy, Debug)]
pub struct Mutant {
    pub id: &'static str,
    pub description: &'static str,
    pub violates: Invariant,
    pub detector: Detector,
    /// The one service that has it; `None`: all.
    pub service: Option<&'static str>,
}

/// What is run to detect it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detector {
    Trial(MutantTrial),
    /// A test of the chassis, for what a real broker can't be made to do.
    Test(&'static str),
}

const fn mutant(
    id: &'static str,
    what: &'static str,
    violates: Invariant,
    disturbance: Disturbance,
) -> Mutant {
    let catcher = Detector::Trial(MutantTrial { disturbance, instances: 1 });
    Mutant { id, description: what, violates, detector: catcher, service: None }
}

const fn with_two_instances(mutant: Mutant) -> Mutant {
    match mutant.detector {
        Detector::Trial(trial) => {
            Mutant { detector: Detector::Trial(MutantTrial { instances: 2, ..trial }), ..mutant }
        }
        Detector::Test(_) => mutant,
    }
}

const fn detected_by_test(test: &'static str, mutant: Mutant) -> Mutant {
    Mutant { detector: Detector::Test(test), ..mutant }
}

const fn in_service(service: &'static str, mutant: Mutant) -> Mutant {
    Mutant { service: Some(service), ..mutant }
}

/// Its broker answers a producer that it is out of sequence, which a real broker can't be made to do.
const FATAL_PRODUCER_TEST: &str = "a_producer_with_a_fatal_error_is_replaced_and_loses_nothing";

/// Its broker refuses the first of two requests that are under way and takes the second: of a real one, that
/// is a moment.
const POSSIBLY_PERSISTED_TEST: &str =
    "a_possibly_persisted_record_is_sent_again_though_the_client_reports_it_delivered";

/// The ids are names and nothing more. There is no B14: it was about a payment provider, and payment
/// has none.
pub const MUTANTS: [Mutant; 16] = [
    mutant(
        "B1",
        "offset stored before the commit",
        I13,
        Disturbance::DatabaseThenService("payment"),
    ),
    mutant(
        "B2",
        "inbox in its own transaction",
        I7,
        Disturbance::TableLocked("payment", "payments"),
    ),
    mutant(
        "B3",
        "outbox outside the transaction",
        I11,
        Disturbance::TableLocked("order", "orders"),
    ),
    mutant("B4", "outbox row deleted when it is sent", I8, Disturbance::KafkaThenService("order")),
    mutant("B5", "relay goes on after the last position", I8, Disturbance::SlowCommits("order")),
    with_two_instances(mutant("B6", "two active relays", I9, Disturbance::Nothing)),
    mutant("B7", "no tombstone in stock", I4, Disturbance::CancellationsFirst("stock")),
    mutant("B8", "no tombstone in payment", I5, Disturbance::CancellationsFirst("payment")),
    with_two_instances(mutant("B9", "items not locked", I6, Disturbance::Nothing)),
    in_service(
        "payment",
        mutant("B10", "a new group skips", I13, Disturbance::LateStart("payment")),
    ),
    mutant("B11", "the first of two answers dropped", I13, Disturbance::Nothing),
    mutant(
        "B12",
        "dead letter of what would pass",
        I10,
        Disturbance::TableLocked("payment", "payments"),
    ),
    mutant(
        "B13",
        "key outside the transaction",
        I2,
        Disturbance::TableLocked("order", "idempotency_keys"),
    ),
    mutant("B15", "a task ends unnoticed", I13, Disturbance::DatabaseKilled("payment")),
    detected_by_test(
        FATAL_PRODUCER_TEST,
        mutant("B16", "a dead producer is kept", I13, Disturbance::Nothing),
    ),
    detected_by_test(
        POSSIBLY_PERSISTED_TEST,
        mutant("B17", "taken for written without an offset", I8, Disturbance::Nothing),
    ),
];

/// Where the patch of a mutant lies.
pub fn patch_file(root: &Path, mutant: &Mutant) -> PathBuf {
    root.join("e2e/mutants/patches").join(format!("{}.patch", mutant.id))
}
