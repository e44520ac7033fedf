//! At every moment, the history of an order alone gives its state.

use proptest::prelude::*;

use super::fold::entries;
use super::*;
use crate::order::CancelOrder;

#[path = "../../../../e2e/src/checker/history_fold.rs"]
mod audit;

/// Every order of these tests asks both.
const LEGS: [&str; 2] = ["payment", "stock"];

/// The state of an order in its rows, as the API shows it.
fn state_of(order: &Order) -> audit::OrderState {
    let word = |value: Value| value.as_str().unwrap().to_string();
    let order = json!(order);
    audit::OrderState {
        status: word(order["status"].clone()),
        reason: order["reason"].as_str().map(str::to_string),
        legs: LEGS.map(|service| (service, word(order[service].clone()))).into(),
        ended_at: serde_json::from_value(order["ended_at"].clone()).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// Whatever events arrive and whatever command cancels: at every moment the history alone gives the state of the
    /// order.
    #[test]
    fn folding_a_history_yields_the_state_of_its_order(
        steps in prop::collection::vec(prop_oneof![9 => (0..RESPONSES.len()).prop_map(Some), 1 => Just(None)], 1..30),
    ) {
        let mut rows = items();
        place(&[("pen", 2), ("ink", 1)]).decide(&mut rows, HandlerContext { causation_id: None, ..context(1) }).unwrap();
        for (now, step) in steps.into_iter().enumerate() {
            let context = context(now as u128 + 2);
            match step {
                Some(response) => drop(handle(RESPONSES[response], ORDER, &mut rows, context)),
                None => {
                    let cancel = CancelOrder { order_id: ORDER, caller: Caller::unrestricted() };
                    let _ = cancel.decide(&mut rows, HandlerContext { causation_id: None, ..context });
                }
            }
            let (entries, order) = (entries(&rows), rows.order(ORDER).unwrap());
            let lines = entries.iter().map(|entry| audit::HistoryEntry {
                event: &entry.event,
                detail: &entry.detail,
                occurred_at: entry.occurred_at,
            });
            prop_assert_eq!(audit::fold(LEGS, lines), Ok(state_of(order)), "the fold of the checker");
            prop_assert_eq!(Order::fold(&entries), Ok(Some(order.clone())), "the fold of the service");
        }
    }
}
