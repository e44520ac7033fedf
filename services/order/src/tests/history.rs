//! At every moment, the history of an order alone gives its state.

use proptest::prelude::*;

use super::*;
use crate::order::CancelOrder;

#[path = "../../../../e2e/src/checker/history_fold.rs"]
mod audit;

/// The state of an order in its rows, as the API shows it.
fn state_of(order: &Order) -> audit::OrderState {
    let word = |value: Value| value.as_str().unwrap().to_string();
    let order = json!(order);
    audit::OrderState {
        status: word(order["status"].clone()),
        reason: order["reason"].as_str().map(str::to_string),
        payment: word(order["payment"].clone()),
        stock: word(order["stock"].clone()),
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
                    let cancel = CancelOrder { order_id: ORDER, reason: Reason::Customer, caller: Caller::unrestricted() };
                    let _ = cancel.decide(&mut rows, HandlerContext { causation_id: None, ..context });
                }
            }
            let details: Vec<Value> = rows
                .history()
                .iter()
                .map(|entry| serde_json::from_str(&entry.detail).unwrap())
                .collect();
            let lines = rows.history().iter().zip(&details).map(|(entry, detail)| audit::HistoryEntry {
                event: entry.event,
                detail,
                occurred_at: entry.occurred_at,
            });
            prop_assert_eq!(audit::fold(lines), Ok(state_of(rows.order(ORDER).unwrap())));
        }
    }
}
