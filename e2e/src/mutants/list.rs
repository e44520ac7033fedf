//! The mutants: bugs that the suite has to detect. Each is a patch in `e2e/mutants/patches`, and has one detector
//! and one invariant by which the detector has to find it.

use std::path::{Path, PathBuf};

use crate::checker::invariants::Invariant::{self, *};
use crate::mutants::trial::{Disturbance, MutantTrial};

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
    Trial(MutantTrial),
    /// A test of the chassis, for a fault that a real broker cannot be made to have.
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

/// Its broker responds to a producer with an out-of-sequence error, which a real broker cannot be
/// made to do.
const FATAL_PRODUCER_TEST: &str = "a_producer_with_a_fatal_error_is_replaced_and_loses_nothing";

/// Its broker refuses the first of two requests in flight and accepts the second; with a real
/// broker, this is a matter of chance.
const POSSIBLY_PERSISTED_TEST: &str =
    "a_possibly_persisted_record_is_sent_again_though_the_client_reports_it_delivered";

/// The ids are only names. There is no B14: that mutant was about a payment provider, and payment
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
    mutant("B5", "relay continues after the last position", I8, Disturbance::SlowCommits("order")),
    with_two_instances(mutant("B6", "two active relays", I9, Disturbance::Nothing)),
    mutant("B7", "no tombstone in stock", I4, Disturbance::CancellationsFirst("stock")),
    mutant("B8", "no tombstone in payment", I5, Disturbance::CancellationsFirst("payment")),
    with_two_instances(mutant("B9", "items not locked", I6, Disturbance::Nothing)),
    in_service(
        "payment",
        mutant("B10", "a new group skips records", I13, Disturbance::OffsetsLost("payment")),
    ),
    mutant("B11", "the first of two responses dropped", I13, Disturbance::Nothing),
    mutant(
        "B12",
        "dead letter of an event that would succeed later",
        I10,
        Disturbance::TableLocked("payment", "payments"),
    ),
    mutant(
        "B13",
        "key outside the transaction",
        I2,
        Disturbance::TableLocked("order", "chassis.idempotency_keys"),
    ),
    mutant("B15", "a task ends unnoticed", I13, Disturbance::DatabaseKilled("payment")),
    detected_by_test(
        FATAL_PRODUCER_TEST,
        mutant("B16", "a dead producer is kept", I13, Disturbance::Nothing),
    ),
    detected_by_test(
        POSSIBLY_PERSISTED_TEST,
        mutant(
            "B17",
            "delivery report without an offset counts as written",
            I8,
            Disturbance::Nothing,
        ),
    ),
];

/// The file with the patch of a mutant.
pub fn patch_file(root: &Path, mutant: &Mutant) -> PathBuf {
    root.join("e2e/mutants/patches").join(format!("{}.patch", mutant.id))
}
