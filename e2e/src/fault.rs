//! The faults of a chaos run, and the schedule of a round, drawn from a seed: the same seed and the
//! same round draw the same faults at the same moments.

use std::collections::BTreeSet;
use std::fmt::{self, Display};
use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::pairs::{Dependency, Pair};
use crate::topology::{Member, SERVICES};

/// Of each round.
pub const KILLS: usize = 12;
pub const OTHERS: usize = 12;

/// Faults come in spells, with quiet between them: what only shows itself at rest has to be seen too.
const SPELL: Duration = Duration::from_secs(22);
const QUIET: Duration = Duration::from_secs(6);

/// Before the first fault there is an undisturbed load, and after the last one too.
const UNDISTURBED: Duration = Duration::from_secs(2);
const UNDISTURBED_LAST: Duration = Duration::from_secs(8);

/// A kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Class {
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
    LostAnswers,
    Reset,
    Refusal,
    Narrow,
    CutCommits,
    ReadOnly,
    SessionsEnded,
    RelayLockLost,
    TableLocked,
    SnapshotHeld,
    Rewind,
    OffsetsLost,
    Repeats,
    Poison,
    Impossible,
    BadMigration,
    AnnouncedAgain,
    Deadline,
}

use Class::*;

/// Each class once, kills with how many of a hundred kills they are.
const KILLING: [(Class, u32); 6] = [
    (KillService, 62),
    (KillKafka, 7),
    (KillRegistry, 5),
    (KillDatabase, 10),
    (KillPostmaster, 8),
    (KillBackend, 8),
];
const OTHER: [Class; 28] = [
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
    LostAnswers,
    Reset,
    Refusal,
    Narrow,
    CutCommits,
    ReadOnly,
    SessionsEnded,
    RelayLockLost,
    TableLocked,
    SnapshotHeld,
    Rewind,
    OffsetsLost,
    Repeats,
    Poison,
    Impossible,
    BadMigration,
    AnnouncedAgain,
    Deadline,
];

impl Class {
    pub fn all() -> impl Iterator<Item = Class> {
        KILLING.into_iter().map(|(class, _)| class).chain(OTHER)
    }

    pub fn is_kill(self) -> bool {
        KILLING.iter().any(|(class, _)| *class == self)
    }

    /// What it is, and its number in the fault matrix.
    pub fn says(self) -> (&'static str, &'static str) {
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
            LostAnswers => ("half open: answers don't arrive", "F39"),
            Reset => ("connections are reset", "F09, F39"),
            Refusal => ("connections are refused", "F39"),
            Narrow => ("20 kB/s", "F39"),
            CutCommits => ("half of all commits lose their answer", "F15"),
            ReadOnly => ("a database is read-only", "F13"),
            SessionsEnded => ("a database ends its sessions", "F13"),
            RelayLockLost => ("the relay's session is ended", "F32"),
            TableLocked => ("a table is locked", "F13"),
            SnapshotHeld => ("an old snapshot is held", "F40"),
            Rewind => ("a group is set back to offset 0", "F30"),
            OffsetsLost => ("a group's offsets are deleted", "F29"),
            Repeats => ("records are written again, once to three times", "F20"),
            Poison => ("bytes that are no event", "F24"),
            Impossible => ("events that cannot be", "F25"),
            BadMigration => ("a bad migration; then its dead letters are replayed", "F26"),
            AnnouncedAgain => ("a service announces again", "F20"),
            Deadline => ("orders have a deadline while stock is frozen", "F38"),
        }
    }

    /// For how long, in tenths of a second.
    fn lasting(self) -> Range<u64> {
        match self {
            KillService | KillRegistry => 2..40,
            KillKafka | KillDatabase | KillPostmaster | StopDatabase | StopService => 2..25,
            // Beyond the session with Kafka, and the relay's with its database, and within.
            PauseService => 20..160,
            PauseKafka | PauseDatabase | PauseRegistry => 20..80,
            BlackHole | LostRequests | LostAnswers => 20..150,
            Latency | Narrow | Scale => 50..120,
            Refusal | CutCommits | BadMigration => 20..60,
            ReadOnly | TableLocked => 10..50,
            SnapshotHeld => 80..150,
            // The sweep looks every five seconds, and ends nothing before its third look.
            Deadline => 100..120,
            KillBackend | Reset | SessionsEnded | RelayLockLost | Rewind | OffsetsLost
            | Repeats | Poison | Impossible | AnnouncedAgain => 0..1,
        }
    }

    /// Whom it may befall.
    fn victims(self, instances: u16) -> Vec<Victim> {
        let services = || SERVICES.into_iter().map(String::from);
        let each_instance = || {
            let of = |service: &'static str| {
                (1..=instances).map(move |nth| Member::instance(service, nth).to_string())
            };
            SERVICES.into_iter().flat_map(of).map(Victim::Member).collect()
        };
        let only = |name: &str| vec![Victim::Member(name.to_string())];
        match self {
            KillService | PauseService | StopService => each_instance(),
            KillKafka | PauseKafka | Repeats | Poison | Impossible => only("kafka"),
            KillRegistry | PauseRegistry => only("registry"),
            KillDatabase | KillPostmaster | KillBackend | PauseDatabase | StopDatabase
            | ReadOnly | SessionsEnded | RelayLockLost | TableLocked | SnapshotHeld => {
                services().map(|service| Victim::Member(format!("{service}-db"))).collect()
            }
            Scale => SERVICES
                .map(|service| Member::instance(service, instances + 1).to_string())
                .map(Victim::Member)
                .to_vec(),
            Latency | BlackHole | LostRequests | LostAnswers | Reset | Refusal | Narrow => {
                Pair::all().into_iter().map(Victim::Pair).collect()
            }
            CutCommits => {
                let of = |service: String| Pair::of(&service, Dependency::Database);
                services().map(of).map(Victim::Pair).collect()
            }
            Rewind | OffsetsLost | AnnouncedAgain => services().map(Victim::Service).collect(),
            BadMigration => vec![Victim::Service("payment".to_string())],
            Deadline => vec![Victim::Service("order".to_string())],
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Victim {
    /// One process.
    Member(String),
    /// All instances of a service.
    Service(String),
    Pair(Pair),
}

impl Display for Victim {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Victim::Member(name) | Victim::Service(name) => write!(out, "{name}"),
            Victim::Pair(pair) => write!(out, "{pair}"),
        }
    }
}

/// One fault of a round.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    pub class: Class,
    pub victim: Victim,
    /// From the beginning of the load.
    pub at: Duration,
    pub lasting: Duration,
    /// What it draws itself is drawn by this.
    pub seed: u64,
}

impl Fault {
    pub fn lots(&self) -> StdRng {
        StdRng::seed_from_u64(self.seed)
    }

    /// Whatever no other fault may touch at the same time, in order.
    pub fn touches(&self, instances: u16) -> BTreeSet<String> {
        // Further instances too: one of them may just be joining.
        let all_of = |service: &str| {
            let of = |nth| Member::instance(service, nth).to_string();
            (1..=instances + 1).map(of).collect::<Vec<_>>()
        };
        let mut touched: Vec<String> = match &self.victim {
            Victim::Member(name) => vec![name.clone()],
            Victim::Service(service) => all_of(service),
            Victim::Pair(pair) => vec![pair.to_string()],
        };
        let also: &[&str] = match self.class {
            Rewind | OffsetsLost => &["kafka"],
            Repeats | Poison | Impossible => &["registry"],
            BadMigration => &["payment-db"],
            Deadline => &["stock", "stock-2", "stock-3", "kafka"],
            _ => &[],
        };
        touched.extend(also.iter().map(|name| name.to_string()));
        touched.into_iter().collect()
    }
}

impl Display for Fault {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let (what, number) = self.class.says();
        write!(out, "{number:<4} {what}: {}", self.victim)
    }
}

/// Lots for one purpose: drawing more for one thing changes nothing about another.
pub fn lots(seed: u64, purpose: u64, nth: u64) -> StdRng {
    let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ purpose.rotate_left(32) ^ nth;
    StdRng::seed_from_u64(mixed)
}

/// What the orders of a round are drawn by.
pub fn lots_seed(seed: u64, round: u64) -> u64 {
    lots(seed, 3, round).random()
}

/// The faults of a round, by the time when they come. Faults that are no kills are dealt like cards,
/// on from one round to the next, so that each comes as often as any other.
pub fn draw(seed: u64, round: u64, instances: u16, load: Duration) -> Vec<Fault> {
    let mut lots_of_round = lots(seed, 1, round);
    let mut classes: Vec<Class> = (0..KILLS).map(|_| kill(&mut lots_of_round)).collect();
    let dealt = (0..OTHERS as u64).map(|nth| deal(seed, round * OTHERS as u64 + nth));
    classes.extend(dealt);
    let last = load.saturating_sub(UNDISTURBED_LAST);
    let mut faults: Vec<Fault> = (0..)
        .zip(classes)
        .map(|(nth, class)| {
            let tenths = lots_of_round.random_range(class.lasting());
            let victims = class.victims(instances);
            Fault {
                class,
                victim: victims.choose(&mut lots_of_round).cloned().expect("each has a victim"),
                at: moment(&mut lots_of_round, last),
                lasting: Duration::from_millis(tenths * 100),
                seed: lots(seed, 4, round * (KILLS + OTHERS) as u64 + nth).random(),
            }
        })
        .collect();
    faults.sort_by_key(|fault| fault.at);
    faults
}

fn kill(lots: &mut StdRng) -> Class {
    let mut drawn = lots.random_range(0..100);
    for (class, share) in KILLING {
        if drawn < share {
            return class;
        }
        drawn -= share;
    }
    KillService
}

fn deal(seed: u64, nth: u64) -> Class {
    let cards = OTHER.len() as u64;
    let mut deck = OTHER;
    deck.shuffle(&mut lots(seed, 2, nth / cards));
    deck[(nth % cards) as usize]
}

/// A moment in a spell.
fn moment(lots: &mut StdRng, last: Duration) -> Duration {
    loop {
        let at = lots.random_range(UNDISTURBED..last.max(UNDISTURBED * 2));
        let within = (at - UNDISTURBED).as_millis() % (SPELL + QUIET).as_millis();
        if within < SPELL.as_millis() {
            return Duration::from_millis(at.as_millis() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Duration = Duration::from_secs(90);

    #[test]
    fn the_same_seed_draws_the_same_schedule_and_another_one_another() {
        assert_eq!(draw(7, 3, 2, LOAD), draw(7, 3, 2, LOAD));
        assert_ne!(draw(7, 3, 2, LOAD), draw(7, 4, 2, LOAD));
        assert_ne!(draw(7, 3, 2, LOAD), draw(8, 3, 2, LOAD));
    }

    #[test]
    fn half_an_hour_has_a_hundred_kills_and_every_class_and_some_overlap() {
        let rounds: Vec<Vec<Fault>> = (0..10).map(|round| draw(1, round, 1, LOAD)).collect();
        let all: Vec<&Fault> = rounds.iter().flatten().collect();
        assert!(all.iter().filter(|fault| fault.class.is_kill()).count() >= 100);
        for class in Class::all() {
            assert!(all.iter().any(|fault| fault.class == class), "{class:?}");
        }
        for faults in &rounds {
            let overlap = |pair: &[Fault]| pair[0].at + pair[0].lasting > pair[1].at;
            assert!(faults.windows(2).any(overlap));
        }
    }

    #[test]
    fn faults_that_touch_the_same_process_are_known_to() {
        let fault = |class, victim| {
            let (at, lasting) = (Duration::ZERO, Duration::ZERO);
            Fault { class, victim, at, lasting, seed: 0 }
        };
        let kill = fault(KillService, Victim::Member("stock-2".into())).touches(2);
        let rewind = fault(Rewind, Victim::Service("stock".into())).touches(2);
        let other = fault(KillService, Victim::Member("stock".into())).touches(2);
        assert!(!kill.is_disjoint(&rewind) && kill.is_disjoint(&other));
    }
}
