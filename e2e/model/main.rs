//! The saga, in every interleaving: a model checker that calls the handlers of the three services.
//!
//! The checker tries everything that Kafka and crashes can do to an order. Any published event is
//! delivered to any of its subscribers at any time, in any order, any number of times. The customer
//! cancels at any moment, the deadline passes at any moment, and payment finds money or does not.
//! The checker assumes what the tests of the chassis prove: a transaction is atomic, and an outbox
//! loses nothing.
//!
//! The model has no inbox: the rules alone have to survive repetition. A state contains only what
//! the handlers can distinguish. For each step the checker builds rows from the state, calls the
//! real handler, and reads the rows back. It also has to detect every rule that is broken on purpose
//! (see [`mutants`]).

// Clippy recognises tests by their attribute, and this whole program is a test.
#![allow(clippy::unwrap_used)]

mod mutants;
mod participants;
mod promises;
mod properties;
mod read_back;
mod rows;
mod saga;
mod world;

use std::time::Instant;

use stateright::{Checker, HasDiscoveries, Model};

use mutants::{MUTANTS, Mutant};
use saga::SagaModel;

/// Explores all states. Returns their number, and the promises that were broken and the situations
/// that never occurred.
fn explore<const N: usize>(saga: SagaModel<N>) -> (usize, Vec<String>) {
    let (began, units, mutant) = (Instant::now(), saga.rules.units, saga.rules.mutant);
    // With a mutant, the search finds every promise that it breaks. Without one, the first broken promise ends the
    // search, which might have no end then.
    let enough = match mutant {
        Some(_) => HasDiscoveries::All,
        None => HasDiscoveries::AnyFailures,
    };
    let checked = saga.checker().finish_when(enough).threads(2).spawn_bfs().join();
    let discovered = checked.discoveries();
    let mut findings = Vec::new();
    for property in checked.model().properties() {
        match (discovered.get(property.name), property.expectation) {
            (Some(path), stateright::Expectation::Always) => {
                let steps = path.clone().into_actions().len();
                findings.push(format!("{} [{steps} steps]", property.name));
            }
            (None, stateright::Expectation::Sometimes) if mutant.is_none() => {
                findings.push(format!("never seen: {}", property.name));
            }
            _ => {}
        }
    }
    let name = mutant.map_or("the saga".into(), |mutant| format!("{mutant:?}"));
    println!(
        "{name:27} orders={N} units={units} states={} steps={} depth={} {:.1}s {}",
        checked.unique_state_count(),
        checked.state_count(),
        checked.max_depth(),
        began.elapsed().as_secs_f32(),
        findings.join("; "),
    );
    (checked.unique_state_count(), findings)
}

#[test]
fn one_order_and_two_orders_always_end_in_agreement() {
    // The only order has its unit, so nothing is ever out of stock.
    assert_eq!(
        explore(SagaModel::<1>::without_cache(1)),
        (177, vec!["never seen: out of stock".into()])
    );
    assert_eq!(explore(SagaModel::<2>::without_cache(1)), (42_429, vec![]));
    assert_eq!(explore(SagaModel::<2>::new(1, None)), (42_429, vec![]));
}

#[test]
#[ignore = "takes two minutes: make faults"]
fn three_orders_for_two_units_always_end_in_agreement() {
    assert_eq!(explore(SagaModel::<3>::new(2, None)), (7_334_329, vec![]));
}

#[test]
fn every_broken_rule_is_caught() {
    let survivors: Vec<Mutant> = MUTANTS
        .into_iter()
        .filter(|(mutant, promise)| {
            let (_, findings) = explore(SagaModel::<2>::new(1, Some(*mutant)));
            !findings.iter().any(|finding| finding.starts_with(promise))
        })
        .map(|(mutant, _)| mutant)
        .collect();
    assert_eq!(survivors, []);
}
