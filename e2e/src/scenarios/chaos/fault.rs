//! The faults of a chaos run: classes, victims and durations. They know the services of the shop,
//! so they do not belong to `faults`.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::ops::Range;
use std::time::Duration;

use faults::links::{Dependency, Link};
use launcher::Component;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::{Deserialize, Serialize};

/// A class of faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum FaultClass {
    KillService,
    KillKafka,
    KillRegistry,
    KillDatabase,
    KillPostmaster,
    KillBackend,
    PauseService,
    PauseKafka,
    PauseRegistry,
    PauseDatabase,
    StopService,
    StopDatabase,
    Scale,
    Latency,
    BlackHole,
    LostRequests,
    LostResponses,
    ConnectionsReset,
    ConnectionsRefused,
    LimitedBandwidth,
    LostCommitResponses,
    ReadOnly,
    SessionsTerminated,
    RelayLockLost,
    TableLocked,
    SnapshotHeld,
    OffsetsReset,
    OffsetsDeleted,
    DuplicateRecords,
    PoisonRecords,
    UnprocessableEvents,
    BadMigration,
    Republished,
    DeadlineExpired,
}

use FaultClass::*;

use crate::stack_description::SERVICES;

/// Every class once. Kills have a weight in percent of all kills.
pub const KILL_WEIGHTS: [(FaultClass, u32); 6] = [
    (KillService, 62),
    (KillKafka, 7),
    (KillRegistry, 5),
    (KillDatabase, 10),
    (KillPostmaster, 8),
    (KillBackend, 8),
];

pub const OTHER_CLASSES: [FaultClass; 28] = [
    PauseService,
    PauseKafka,
    PauseRegistry,
    PauseDatabase,
    StopService,
    StopDatabase,
    Scale,
    Latency,
    BlackHole,
    LostRequests,
    LostResponses,
    ConnectionsReset,
    ConnectionsRefused,
    LimitedBandwidth,
    LostCommitResponses,
    ReadOnly,
    SessionsTerminated,
    RelayLockLost,
    TableLocked,
    SnapshotHeld,
    OffsetsReset,
    OffsetsDeleted,
    DuplicateRecords,
    PoisonRecords,
    UnprocessableEvents,
    BadMigration,
    Republished,
    DeadlineExpired,
];

impl FaultClass {
    pub fn all() -> impl Iterator<Item = FaultClass> {
        KILL_WEIGHTS.into_iter().map(|(class, _)| class).chain(OTHER_CLASSES)
    }

    pub fn is_kill(self) -> bool {
        KILL_WEIGHTS.iter().any(|(class, _)| *class == self)
    }

    /// Its description, and its number in the fault matrix of docs/testing.md.
    pub fn describe(self) -> (&'static str, &'static str) {
        match self {
            KillService => ("a service is killed", "F11"),
            KillKafka => ("Kafka is killed", "F12"),
            KillRegistry => ("the registry is killed", "F17"),
            KillDatabase => ("a database is killed", "F13"),
            KillPostmaster => ("a postmaster is killed, its backends are not", "F13"),
            KillBackend => ("a database's backend is killed", "F13"),
            PauseService => ("a service is frozen", "F21"),
            PauseKafka => ("Kafka is frozen", "F12"),
            PauseRegistry => ("the registry is frozen", "F18"),
            PauseDatabase => ("a database is frozen", "F13"),
            StopService => ("a service is stopped by SIGTERM", "F10"),
            StopDatabase => ("a database is stopped at once", "F13"),
            Scale => ("a further instance comes and goes", "F22"),
            Latency => ("200 ms of latency, give or take 100", "F39"),
            BlackHole => ("a black hole", "F39"),
            LostRequests => ("half open: requests don't arrive", "F39"),
            LostResponses => ("half open: responses don't arrive", "F39"),
            ConnectionsReset => ("connections are reset", "F09, F39"),
            ConnectionsRefused => ("connections are refused", "F39"),
            LimitedBandwidth => ("20 kB/s", "F39"),
            LostCommitResponses => ("half of all commits lose their response", "F15"),
            ReadOnly => ("a database is read-only", "F13"),
            SessionsTerminated => ("a database ends its sessions", "F13"),
            RelayLockLost => ("the relay's session is ended", "F32"),
            TableLocked => ("a table is locked", "F13"),
            SnapshotHeld => ("an old snapshot is held", "F40"),
            OffsetsReset => ("a group is set back to offset 0", "F30"),
            OffsetsDeleted => ("a group's offsets are deleted", "F29"),
            DuplicateRecords => ("records are written again, once to three times", "F20"),
            PoisonRecords => ("bytes that are no event", "F24"),
            UnprocessableEvents => ("unprocessable events", "F25"),
            BadMigration => ("a bad migration; then its dead letters are replayed", "F26"),
            Republished => ("a service republishes", "F20"),
            DeadlineExpired => ("orders have a deadline while stock is frozen", "F38"),
        }
    }

    /// Its duration, in tenths of a second.
    pub fn duration_range(self) -> Range<u64> {
        match self {
            KillService | KillRegistry => 2..40,
            KillKafka | KillDatabase | KillPostmaster | StopDatabase | StopService => 2..25,
            // Longer and shorter than the session with Kafka and the relay's session with its
            // database.
            PauseService => 20..160,
            PauseKafka | PauseDatabase | PauseRegistry => 20..80,
            BlackHole | LostRequests | LostResponses => 20..150,
            Latency | LimitedBandwidth | Scale => 50..120,
            ConnectionsRefused | LostCommitResponses | BadMigration => 20..60,
            ReadOnly | TableLocked => 10..50,
            SnapshotHeld => 80..150,
            // The sweep runs every five seconds, and cancels nothing before its third run.
            DeadlineExpired => 100..120,
            KillBackend | ConnectionsReset | SessionsTerminated | RelayLockLost | OffsetsReset
            | OffsetsDeleted | DuplicateRecords | PoisonRecords | UnprocessableEvents
            | Republished => 0..1,
        }
    }

    /// Its possible victims.
    pub fn victims(self, instances: u16) -> Vec<Victim> {
        let services = || SERVICES.into_iter().map(String::from);
        let each_instance = || {
            let of = |service: &'static str| {
                (1..=instances).map(move |nth| Component::instance(service, nth).to_string())
            };
            SERVICES.into_iter().flat_map(of).map(Victim::Component).collect()
        };
        let only = |name: &str| vec![Victim::Component(name.to_string())];
        match self {
            KillService | PauseService | StopService => each_instance(),
            KillKafka | PauseKafka | DuplicateRecords | PoisonRecords | UnprocessableEvents => {
                only("kafka")
            }
            KillRegistry | PauseRegistry => only("registry"),
            KillDatabase | KillPostmaster | KillBackend | PauseDatabase | StopDatabase
            | ReadOnly | SessionsTerminated | RelayLockLost | TableLocked | SnapshotHeld => {
                services().map(|service| Victim::Component(format!("{service}-db"))).collect()
            }
            Scale => SERVICES
                .map(|service| Component::instance(service, instances + 1).to_string())
                .map(Victim::Component)
                .to_vec(),
            Latency | BlackHole | LostRequests | LostResponses | ConnectionsReset
            | ConnectionsRefused | LimitedBandwidth => {
                Link::all(&SERVICES).into_iter().map(Victim::Link).collect()
            }
            LostCommitResponses => {
                let of = |service: String| Link::new(&service, Dependency::Database);
                services().map(of).map(Victim::Link).collect()
            }
            OffsetsReset | OffsetsDeleted | Republished => {
                services().map(Victim::Service).collect()
            }
            BadMigration => vec![Victim::Service("payment".to_string())],
            DeadlineExpired => vec![Victim::Service("order".to_string())],
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Victim {
    /// One process.
    Component(String),
    /// All instances of a service.
    Service(String),
    Link(Link),
}

impl Display for Victim {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Victim::Component(name) | Victim::Service(name) => write!(out, "{name}"),
            Victim::Link(pair) => write!(out, "{pair}"),
        }
    }
}

/// One fault of a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub class: FaultClass,
    pub victim: Victim,
    /// Since the beginning of the load.
    pub at: Duration,
    pub duration: Duration,
    /// The seed of its own draws.
    pub seed: u64,
}

impl Fault {
    pub fn rng(&self) -> StdRng {
        StdRng::seed_from_u64(self.seed)
    }

    /// A proxy cannot find the responses to commits in what is encrypted, so responses of every kind are lost.
    pub fn adapt_to_encryption(&mut self) {
        if self.class == LostCommitResponses {
            self.class = LostResponses;
        }
    }

    /// The resources that no other fault may touch at the same time, in order.
    pub fn exclusive_resources(&self, instances: u16) -> BTreeSet<String> {
        // Including further instances: one of them may just be joining.
        let all_of = |service: &str| {
            let of = |nth| Component::instance(service, nth).to_string();
            (1..=instances + 1).map(of).collect::<Vec<_>>()
        };
        let mut resources: Vec<String> = match &self.victim {
            Victim::Component(name) => vec![name.clone()],
            Victim::Service(service) => all_of(service),
            Victim::Link(pair) => vec![pair.to_string()],
        };
        let also: &[&str] = match self.class {
            OffsetsReset | OffsetsDeleted => &["kafka"],
            DuplicateRecords | PoisonRecords | UnprocessableEvents => &["registry"],
            BadMigration => &["payment-db"],
            DeadlineExpired => &["stock", "stock-2", "stock-3", "kafka"],
            _ => &[],
        };
        resources.extend(also.iter().map(|name| name.to_string()));
        resources.into_iter().collect()
    }
}

impl Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let (what, number) = self.class.describe();
        write!(out, "{number:<4} {what}: {}", self.victim)
    }
}
