//! The rules of stock, by table and by property.

use std::collections::BTreeMap;

use events::stock::{RejectReason, ReleasedLine, ReservedLine, StockRejected};
use proptest::prelude::*;
use sqlx::types::Json;

use super::*;
use crate::saga::{Refusal, ReservationOutcome};
use crate::stock::{Delivery, Item, Line, PutItem, Reservation, Shortfall, State};

fn item(sku: &str, delivered: i64, available: i64) -> Item {
    Item {
        sku: sku.into(),
        name: sku.to_uppercase(),
        price_cents: 150,
        currency: "EUR".into(),
        version: 1,
        delivered,
        available,
        reserved: delivered - available,
        event_id: Uuid::nil(),
        changed_at: context(0).now,
    }
}

/// Five pens of which two are reserved, three inks; and what was done for the order, if anything.
fn warehouse(state: Option<State>) -> Warehouse {
    let mut warehouse = Warehouse::default();
    warehouse.put_item(item("ink", 3, 3));
    warehouse.put_item(item("pen", 5, 3));
    if let Some(state) = state {
        let line = Line { sku: "pen".into(), quantity: 2 };
        let holds = matches!(state, State::Reserved | State::Released);
        warehouse.put_reservation(Reservation {
            order_id: ORDER,
            state,
            lines: Json(if holds { vec![line] } else { vec![] }),
            shortfall: (state == State::Rejected).then(|| {
                let (reason, sku) = (RejectReason::OutOfStock, "pen".into());
                Json(Shortfall { reason, sku, requested: 2, available: 0 })
            }),
            reason: (state == State::Rejected).then(|| "none left".into()),
            response_event_id: (state != State::Void).then(Uuid::max),
            compensation_event_id: matches!(state, State::Released | State::Void).then(Uuid::max),
            created_at: context(0).now,
            updated_at: context(0).now,
        });
    }
    warehouse
}

/// All that the tests put there.
fn rows(warehouse: &Warehouse) -> (Vec<Option<Item>>, Option<Reservation>) {
    let items = ["ink", "pen", "nib"].map(|sku| warehouse.item(sku).cloned());
    (items.into(), warehouse.reservation(ORDER).cloned())
}

fn counts(warehouse: &Warehouse, sku: &str) -> (i64, i64, i64) {
    let item = warehouse.item(sku).unwrap();
    (item.delivered, item.available, item.reserved)
}

const STATES: [State; 4] = [State::Reserved, State::Rejected, State::Released, State::Void];

#[test]
fn a_new_order_gets_every_line() {
    let mut warehouse = warehouse(None);
    let order = created(ORDER, &[("pen", 3), ("ink", 1)]);
    let Ok(Some(ReservationOutcome::Reserved(event))) =
        saga::reserve_stock(&order, &mut warehouse, context(1))
    else {
        panic!("there is enough")
    };
    let by_sku = [("ink", 1), ("pen", 3)];
    let lines = by_sku.map(|(sku, quantity)| ReservedLine { sku: sku.into(), quantity });
    assert_eq!(
        (event.order_id, event.lines, event.occurred_at),
        (ORDER, lines.into(), context(1).now)
    );
    assert_eq!(counts(&warehouse, "pen"), (5, 0, 5));
    assert_eq!(counts(&warehouse, "ink"), (3, 2, 1));
    let row = warehouse.reservation(ORDER).unwrap();
    assert_eq!((row.state, row.response_event_id), (State::Reserved, Some(context(1).event_id)));
    let lines = by_sku.map(|(sku, quantity)| Line { sku: sku.into(), quantity });
    assert_eq!((row.lines.0.as_slice(), row.compensation_event_id), (lines.as_slice(), None));
}

#[test]
fn an_order_with_one_line_too_many_is_rejected_naming_that_line() {
    for (lines, reason, sku, requested, available) in [
        (vec![("ink", 1), ("pen", 4)], RejectReason::OutOfStock, "pen", 4, 3),
        (vec![("pen", 4), ("ink", 4)], RejectReason::OutOfStock, "ink", 4, 3),
        (vec![("ink", 1), ("nib", 1)], RejectReason::NoSuchItem, "nib", 1, 0),
    ] {
        let mut warehouse = warehouse(None);
        let before = rows(&warehouse).0;
        let answer =
            saga::reserve_stock(&created(ORDER, &lines), &mut warehouse, context(1)).unwrap();
        let (order_id, occurred_at, sku) = (ORDER, context(1).now, sku.to_string());
        let no = StockRejected { order_id, reason, sku, requested, available, occurred_at };
        assert_eq!(answer, Some(ReservationOutcome::Rejected(no)));
        assert_eq!(rows(&warehouse).0, before);
        let row = warehouse.reservation(ORDER).unwrap();
        assert_eq!((row.state, row.lines.len()), (State::Rejected, 0));
        assert_eq!(
            (row.response_event_id, row.compensation_event_id),
            (Some(context(1).event_id), None)
        );
        assert!(row.reason.as_ref().unwrap().contains(&format!("{available} available")));
    }
}

#[test]
fn an_order_already_answered_or_cancelled_gets_no_second_response() {
    for state in STATES {
        let mut warehouse = warehouse(Some(state));
        let before = rows(&warehouse);
        let order = created(ORDER, &[("pen", 1)]);
        assert_eq!(saga::reserve_stock(&order, &mut warehouse, context(1)), Ok(None), "{state:?}");
        assert_eq!(rows(&warehouse), before, "{state:?}");
    }
}

#[test]
fn an_unprocessable_order_changes_nothing() {
    for lines in [
        vec![],
        vec![("pen", 0)],
        vec![("ink", 1), ("pen", -1)],
        vec![("pen", 1), ("ink", 1), ("pen", 1)],
    ] {
        let mut warehouse = warehouse(None);
        let before = rows(&warehouse);
        let answer = saga::reserve_stock(&created(ORDER, &lines), &mut warehouse, context(1));
        assert!(answer.is_err(), "{lines:?} {answer:?}");
        assert_eq!(rows(&warehouse), before, "{lines:?}");
    }
}

#[test]
fn a_cancelled_order_releases_its_reservation() {
    let mut warehouse = warehouse(Some(State::Reserved));
    let event =
        saga::release_stock(&cancelled(ORDER), &mut warehouse, context(1)).unwrap().unwrap();
    let lines = vec![ReleasedLine { sku: "pen".into(), quantity: 2 }];
    assert_eq!((event.order_id, event.lines, event.occurred_at), (ORDER, lines, context(1).now));
    assert_eq!(counts(&warehouse, "pen"), (5, 5, 0));
    let row = warehouse.reservation(ORDER).unwrap();
    assert_eq!(
        (row.state, row.compensation_event_id),
        (State::Released, Some(context(1).event_id))
    );
    assert_eq!((row.response_event_id, row.lines.len()), (Some(Uuid::max()), 1));
    assert_eq!((row.created_at, row.updated_at), (context(0).now, context(1).now));
}

#[test]
fn a_cancellation_that_overtakes_its_order_leaves_a_tombstone() {
    let mut warehouse = warehouse(None);
    let items = rows(&warehouse).0;
    let event =
        saga::release_stock(&cancelled(ORDER), &mut warehouse, context(1)).unwrap().unwrap();
    assert_eq!((event.order_id, event.lines.len()), (ORDER, 0));
    let row = warehouse.reservation(ORDER).unwrap();
    assert_eq!((row.state, row.response_event_id), (State::Void, None));
    assert_eq!((row.compensation_event_id, row.lines.len()), (Some(context(1).event_id), 0));
    let late = saga::reserve_stock(&created(ORDER, &[("pen", 1)]), &mut warehouse, context(2));
    assert_eq!(late, Ok(None));
    assert_eq!(rows(&warehouse).0, items);
}

#[test]
fn nothing_is_compensated_twice_or_after_a_rejection() {
    for state in [State::Rejected, State::Released, State::Void] {
        let mut warehouse = warehouse(Some(state));
        let before = rows(&warehouse);
        assert_eq!(
            saga::release_stock(&cancelled(ORDER), &mut warehouse, context(1)),
            Ok(None),
            "{state:?}"
        );
        assert_eq!(rows(&warehouse), before, "{state:?}");
    }
}

#[test]
fn an_item_is_published_only_when_created_or_changed() {
    let mut warehouse = Warehouse::default();
    let put = |name: &str, price_cents, currency: &str| PutItem {
        sku: "pen".into(),
        name: name.into(),
        price_cents,
        currency: currency.into(),
    };
    for (nth, (put, version)) in [
        (put("Pen", 150, "EUR"), Some(1)),
        (put("Pen", 150, "EUR"), None),
        (put("Pen", 160, "EUR"), Some(2)),
        (put("Pencil", 160, "EUR"), Some(3)),
        (put("Pencil", 160, "CHF"), Some(4)),
        (put("Pencil", 160, "CHF"), None),
    ]
    .into_iter()
    .enumerate()
    {
        let accepted = put.decide(&mut warehouse, context(nth as u128)).unwrap();
        let event = accepted.event;
        assert_eq!(event.as_ref().map(|event| event.version), version);
        assert_eq!(accepted.location, (nth == 0).then(|| "/items/pen".to_string()));
        let item = warehouse.item("pen").unwrap();
        assert_eq!(&accepted.output, item);
        assert_eq!(
            (&item.name, item.price_cents, &item.currency),
            (&put.name, put.price_cents, &put.currency)
        );
        if let Some(event) = event {
            assert_eq!(
                (event.name, event.price_cents, event.currency),
                (put.name, put.price_cents, put.currency)
            );
            assert_eq!(item.event_id, context(nth as u128).event_id);
        }
    }
}

#[test]
fn a_changed_item_keeps_its_counts() {
    let mut warehouse = warehouse(None);
    let put =
        PutItem { sku: "pen".into(), name: "Quill".into(), price_cents: 1, currency: "EUR".into() };
    put.decide(&mut warehouse, context(1)).unwrap().event.unwrap();
    assert_eq!(counts(&warehouse, "pen"), (5, 3, 2));
}

#[test]
fn a_refused_delivery_changes_nothing() {
    let most = 1_000_000_000_000_000;
    for (sku, quantity, answer) in [
        ("nib", 1, Err(Refusal::NoSuchItem)),
        ("pen", most - 4, Err(Refusal::LimitExceeded)),
        ("pen", i64::MAX, Err(Refusal::LimitExceeded)),
        ("pen", most - 5, Ok(())),
    ] {
        let mut warehouse = warehouse(None);
        let before = rows(&warehouse);
        let delivery = Delivery { delivery_id: ORDER, sku: sku.into(), quantity };
        let accepted = delivery.decide(&mut warehouse, context(1));
        assert_eq!(accepted.as_ref().map(drop).map_err(|refusal| *refusal), answer);
        match accepted {
            Ok(accepted) => {
                assert_eq!(counts(&warehouse, "pen"), (most, most - 2, 2));
                assert_eq!(Some(&accepted.output), warehouse.item("pen"));
            }
            Err(_) => assert_eq!(rows(&warehouse), before),
        }
    }
}

/// What may happen to a warehouse.
#[derive(Clone, Debug)]
enum Operation {
    Created(usize),
    Cancelled(usize),
    Put(usize, i64),
    Delivered(usize, i64),
}

const SKUS: [&str; 3] = ["ink", "nib", "pen"];
const ORDERS: usize = 5;

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let operation = prop_oneof![
        6 => (0..ORDERS).prop_map(Operation::Created),
        4 => (0..ORDERS).prop_map(Operation::Cancelled),
        1 => (0..SKUS.len(), 0..3_i64).prop_map(|(nth, price)| Operation::Put(nth, price)),
        2 => (0..SKUS.len(), prop_oneof![Just(1), Just(2), Just(999_999_999_999_998)])
            .prop_map(|(nth, quantity)| Operation::Delivered(nth, quantity)),
    ];
    prop::collection::vec(operation, 1..80)
}

/// The lines of each order; some of them are unprocessable.
fn orders() -> impl Strategy<Value = Vec<Vec<(usize, i32)>>> {
    let line = (0..SKUS.len(), prop_oneof![9 => 1..4_i32, 1 => -1..1_i32]);
    prop::collection::vec(prop::collection::vec(line, 0..4), ORDERS)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Whatever arrives, in whatever order and however often: no unit is lost or created, no order gets a
    /// second answer or a second release, and what is refused changes nothing.
    #[test]
    fn items_are_conserved_and_orders_are_answered_once(orders in orders(), operations in operations()) {
        let mut warehouse = Warehouse::default();
        let mut delivered = BTreeMap::<&str, i64>::new();
        let (mut answers, mut undos) = (BTreeMap::new(), BTreeMap::new());
        let id = |nth: usize| Uuid::from_u128(nth as u128);
        let all = |warehouse: &Warehouse| {
            let items = SKUS.map(|sku| warehouse.item(sku).cloned());
            let reservations: Vec<_> = (0..ORDERS).map(|nth| warehouse.reservation(id(nth)).cloned()).collect();
            (items, reservations)
        };
        for (now, operation) in operations.into_iter().enumerate() {
            let before = all(&warehouse);
            let context = context(now as u128 + 1);
            let nothing_may_change = match operation {
                Operation::Created(nth) => {
                    let lines: Vec<_> = orders[nth].iter().map(|(sku, quantity)| (SKUS[*sku], *quantity)).collect();
                    match saga::reserve_stock(&created(id(nth), &lines), &mut warehouse, context) {
                        Ok(Some(_)) => {
                            *answers.entry(nth).or_insert(0) += 1;
                            prop_assert_eq!(warehouse.reservation(id(nth)).unwrap().response_event_id, Some(context.event_id));
                            false
                        }
                        Ok(None) | Err(_) => true,
                    }
                }
                Operation::Cancelled(nth) => {
                    match saga::release_stock(&cancelled(id(nth)), &mut warehouse, context).unwrap() {
                        Some(_) => {
                            *undos.entry(nth).or_insert(0) += 1;
                            prop_assert_eq!(warehouse.reservation(id(nth)).unwrap().compensation_event_id, Some(context.event_id));
                            false
                        }
                        None => true,
                    }
                }
                Operation::Put(nth, price_cents) => {
                    let (sku, name, currency) = (SKUS[nth].into(), "Name".into(), "EUR".into());
                    PutItem { sku, name, price_cents, currency }.decide(&mut warehouse, context).unwrap().event.is_none()
                }
                Operation::Delivered(nth, quantity) => {
                    let delivery = Delivery { delivery_id: context.event_id, sku: SKUS[nth].into(), quantity };
                    match delivery.decide(&mut warehouse, context) {
                        Ok(_) => {
                            *delivered.entry(SKUS[nth]).or_insert(0) += quantity;
                            false
                        }
                        Err(_) => true,
                    }
                }
            };
            if nothing_may_change {
                prop_assert_eq!(&all(&warehouse), &before);
            }
            for sku in SKUS {
                let held = (0..ORDERS).filter_map(|nth| warehouse.reservation(id(nth)));
                let held = held.filter(|row| row.state == State::Reserved).flat_map(|row| row.lines.iter());
                let held: i64 = held.filter(|line| line.sku == sku).map(|line| i64::from(line.quantity)).sum();
                let Some(item) = warehouse.item(sku) else { continue };
                prop_assert!(item.available >= 0);
                prop_assert_eq!(item.delivered, delivered.get(sku).copied().unwrap_or(0));
                prop_assert_eq!((item.reserved, item.delivered), (held, item.available + item.reserved));
            }
            for (nth, was) in before.1.iter().enumerate() {
                let (was, is) = (was.as_ref().map(|row| row.state), warehouse.reservation(id(nth)).map(|row| row.state));
                let moves_down = matches!((was, is), (None, _) | (Some(State::Reserved), Some(State::Released)));
                prop_assert!(was == is || moves_down, "{:?} became {:?}", was, is);
            }
        }
        prop_assert!(answers.values().chain(undos.values()).all(|times| *times == 1));
    }
}

/// A `load` that forgets a row is a mistake in the code: the event would state a release of units that no item got.
/// The panic becomes a dead letter.
#[test]
#[should_panic = "item pen is not among the rows"]
fn moving_units_of_an_item_that_was_not_loaded_panics() {
    let mut forgetful = Warehouse::default();
    forgetful.put_reservation(warehouse(Some(State::Reserved)).reservation(ORDER).unwrap().clone());
    let _ = saga::release_stock(&cancelled(ORDER), &mut forgetful, context(1));
}

#[test]
fn the_impact_of_discarding_an_event_is_stated() {
    let (order, cancel) = (created(ORDER, &[("pen", 2)]), cancelled(ORDER));
    for state in [
        None,
        Some(State::Reserved),
        Some(State::Rejected),
        Some(State::Released),
        Some(State::Void),
    ] {
        let warehouse = warehouse(state);
        let loss = discard::order(&order, &warehouse);
        assert_eq!(loss.remedy.is_some(), state.is_none(), "{state:?}: {loss:?}");
        assert_eq!(loss.write_offs, []);
        let loss = discard::cancellation(&cancel, &warehouse);
        let write_offs: Vec<(i64, &str)> =
            loss.write_offs.iter().map(|w| (w.amount, w.unit.as_str())).collect();
        let due: &[(i64, &str)] = match state {
            Some(State::Reserved) => &[(2, "pen")],
            // Items and amounts are unknown yet.
            None => &[(0, "items")],
            Some(_) => &[],
        };
        assert_eq!(write_offs, due, "{state:?}: {loss:?}");
    }
}
