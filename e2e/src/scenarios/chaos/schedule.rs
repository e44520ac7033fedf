//! The schedule of a round, drawn from a seed: the same seed and round give the same faults at the
//! same times.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};

use crate::scenarios::chaos::classes::CLASSES;
use crate::scenarios::chaos::fault::{Fault, FaultClass};

/// The number of faults of each round.
pub const KILLS_PER_ROUND: usize = 12;

pub const OTHER_FAULTS_PER_ROUND: usize = 12;

/// Faults come in bursts with quiet periods between them, since some errors show only at rest.
const BURST: Duration = Duration::from_secs(22);

const QUIET_PERIOD: Duration = Duration::from_secs(6);

/// An undisturbed load before the first fault and after the last.
const WARM_UP: Duration = Duration::from_secs(2);

const COOL_DOWN: Duration = Duration::from_secs(8);

/// A random generator for one purpose: more draws for one purpose change nothing for another.
pub fn rng(seed: u64, purpose: u64, nth: u64) -> StdRng {
    let mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ purpose.rotate_left(32) ^ nth;
    StdRng::seed_from_u64(mixed)
}

/// The seed of the workload of a round.
pub fn workload_seed(seed: u64, round: u64) -> u64 {
    rng(seed, 3, round).random()
}

/// The faults of a round in order of time. Faults other than kills are dealt like cards, continued
/// from round to round, so that each class is equally frequent.
pub fn generate(seed: u64, round: u64, instances: u16, load: Duration) -> Vec<Fault> {
    let mut round_rng = rng(seed, 1, round);
    let mut classes: Vec<&'static FaultClass> =
        (0..KILLS_PER_ROUND).map(|_| random_kill(&mut round_rng)).collect();
    let dealt = (0..OTHER_FAULTS_PER_ROUND as u64)
        .map(|nth| nth_other_class(seed, round * OTHER_FAULTS_PER_ROUND as u64 + nth));
    classes.extend(dealt);
    let last = load.saturating_sub(COOL_DOWN);
    let mut faults: Vec<Fault> = (0..)
        .zip(classes)
        .map(|(nth, class)| {
            let tenths = round_rng.random_range(class.duration.clone());
            let victims = class.victims.names(instances);
            Fault {
                class,
                victim: victims.choose(&mut round_rng).cloned().expect("each has a victim"),
                at: random_time(&mut round_rng, last),
                duration: Duration::from_millis(tenths * 100),
                seed: rng(seed, 4, round * (KILLS_PER_ROUND + OTHER_FAULTS_PER_ROUND) as u64 + nth)
                    .random(),
            }
        })
        .collect();
    faults.sort_by_key(|fault| fault.at);
    faults
}

fn random_kill(rng: &mut StdRng) -> &'static FaultClass {
    let mut drawn = rng.random_range(0..100);
    for class in &CLASSES {
        if drawn < class.kill_percent {
            return class;
        }
        drawn -= class.kill_percent;
    }
    &CLASSES[0]
}

fn nth_other_class(seed: u64, nth: u64) -> &'static FaultClass {
    let mut deck: Vec<_> = CLASSES.iter().filter(|class| !class.is_kill()).collect();
    let cards = deck.len() as u64;
    deck.shuffle(&mut rng(seed, 2, nth / cards));
    deck[(nth % cards) as usize]
}

/// A time within a burst.
fn random_time(rng: &mut StdRng, last: Duration) -> Duration {
    loop {
        let at = rng.random_range(WARM_UP..last.max(WARM_UP * 2));
        let within = (at - WARM_UP).as_millis() % (BURST + QUIET_PERIOD).as_millis();
        if within < BURST.as_millis() {
            return Duration::from_millis(at.as_millis() as u64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD_DURATION: Duration = Duration::from_secs(90);

    #[test]
    fn the_same_seed_generates_the_same_schedule_and_another_seed_another() {
        assert_eq!(generate(7, 3, 2, LOAD_DURATION), generate(7, 3, 2, LOAD_DURATION));
        assert_ne!(generate(7, 3, 2, LOAD_DURATION), generate(7, 4, 2, LOAD_DURATION));
        assert_ne!(generate(7, 3, 2, LOAD_DURATION), generate(8, 3, 2, LOAD_DURATION));
    }

    #[test]
    fn half_an_hour_has_a_hundred_kills_and_every_class_and_some_overlap() {
        let rounds: Vec<Vec<Fault>> =
            (0..10).map(|round| generate(1, round, 1, LOAD_DURATION)).collect();
        let all: Vec<&Fault> = rounds.iter().flatten().collect();
        assert!(all.iter().filter(|fault| fault.class.is_kill()).count() >= 100);
        for class in &CLASSES {
            assert!(all.iter().any(|fault| fault.class == class), "{class:?}");
        }
        assert_eq!(CLASSES.iter().map(|class| class.kill_percent).sum::<u32>(), 100);
        for faults in &rounds {
            let overlap = |pair: &[Fault]| pair[0].at + pair[0].duration > pair[1].at;
            assert!(faults.windows(2).any(overlap));
        }
    }

    #[test]
    fn faults_on_the_same_process_share_a_resource() {
        let fault = |class, victim: &str| {
            let class = FaultClass::described(class).unwrap();
            let (at, duration) = (Duration::ZERO, Duration::ZERO);
            Fault { class, victim: victim.to_string(), at, duration, seed: 0 }
        };
        let kill = fault("a service is killed", "stock-2").exclusive_resources(2);
        let rewind = fault("a group is set back to offset 0", "stock").exclusive_resources(2);
        let other = fault("a service is killed", "stock").exclusive_resources(2);
        assert!(!kill.is_disjoint(&rewind) && kill.is_disjoint(&other));
    }
}
