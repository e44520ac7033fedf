//! The rules of parcels, every sequence of deliveries, then the rows on a real database.

use chassis::{Effects, HandlerContext, Republish};
use chrono::DateTime;
use events::orders::{CancelReason, OrderCancelled, OrderCreated, OrderLine};
use events::payments::PaymentVerified;
use serde_json::json;
use testing::{TestClient, TestService};
use uuid::Uuid;

use crate::saga::{Answer, UNITS_MAX, note_order, note_payment, undo};
use crate::{BOOKS, Parcel, Parcels, SERVICE, State};

const ORDER: Uuid = Uuid::from_u128(7);

fn context(nth: u128) -> HandlerContext {
    let (event_id, causation_id) = (Uuid::from_u128(nth), None);
    HandlerContext { now: DateTime::from_timestamp(nth as i64, 0).unwrap(), event_id, causation_id }
}

fn created(order_id: Uuid, asked: bool, units: i64) -> OrderCreated {
    let (sku, quantity, unit_price_cents) = ("pen".into(), units as i32, 1);
    OrderCreated {
        order_id,
        customer_id: Uuid::max(),
        lines: vec![OrderLine { sku, quantity, unit_price_cents }],
        total_cents: units,
        currency: "EUR".into(),
        also_asks: Vec::from_iter(asked.then(|| SERVICE.into())),
        occurred_at: context(0).now,
    }
}

fn verified(order_id: Uuid) -> PaymentVerified {
    let (amount_cents, currency) = (1, "EUR".into());
    PaymentVerified { order_id, amount_cents, currency, occurred_at: context(0).now }
}

fn cancelled(order_id: Uuid) -> OrderCancelled {
    OrderCancelled { order_id, reason: CancelReason::Customer, occurred_at: context(0).now }
}

#[test]
fn the_second_half_gets_the_answer_and_a_yes_is_undone() {
    for (units, state) in [(UNITS_MAX, State::Packed), (UNITS_MAX + 1, State::Refused)] {
        let mut rows = Parcels::default();
        assert_eq!(note_payment(&verified(ORDER), &mut rows, context(1)), Ok(None));
        let answer = note_order(&created(ORDER, true, units), &mut rows, context(2)).unwrap();
        let parcel = rows.parcel(ORDER).unwrap().clone();
        assert_eq!(
            (parcel.state, parcel.units, parcel.created_at),
            (state, Some(units), context(2).now)
        );
        let is_yes = state == State::Packed;
        let expected = match is_yes {
            true => Answer::Packed(parcel.packed()),
            false => Answer::Refused(parcel.refused()),
        };
        assert_eq!(answer, Some(expected));
        let unpacked = undo(&cancelled(ORDER), &mut rows, context(3)).unwrap();
        assert_eq!(unpacked.map(|event| event.units), is_yes.then_some(Some(units)));
    }
}

#[test]
fn a_step_that_has_not_begun_is_undone_empty_and_an_order_that_does_not_ask_leaves_no_row() {
    let mut rows = Parcels::default();
    note_order(&created(ORDER, true, 0), &mut rows, context(1)).unwrap_err();
    assert_eq!(note_order(&created(ORDER, false, 1), &mut rows, context(1)), Ok(None));
    assert_eq!(rows.parcel(ORDER), None);
    note_order(&created(ORDER, true, 1), &mut rows, context(1)).unwrap();
    let unpacked = undo(&cancelled(ORDER), &mut rows, context(2)).unwrap().unwrap();
    assert_eq!((unpacked.units, unpacked.occurred_at), (None, context(2).now));
    assert_eq!(rows.parcel(ORDER).unwrap().state, State::Void);
}

/// The row of one order, which of the three events were delivered, and the topics of what was published.
#[derive(Clone, Debug, Default, PartialEq)]
struct World {
    row: Option<Parcel>,
    delivered: [bool; 3],
    published: Vec<&'static str>,
}

impl World {
    fn deliver(&self, nth: usize, (asked, units): (bool, i64)) -> World {
        let (mut rows, mut next) = (Parcels::default(), self.clone());
        self.row.iter().cloned().for_each(|row| rows.put_parcel(row));
        let order = created(ORDER, asked, units);
        let published = match nth {
            0 => note_order(&order, &mut rows, context(1)).map(Effects::of),
            1 => note_payment(&verified(ORDER), &mut rows, context(1)).map(Effects::of),
            _ => undo(&cancelled(ORDER), &mut rows, context(1)).map(Effects::of),
        };
        let published = published.unwrap().with_ids(context(1));
        next.published.extend(published.map(|(_, event)| event.topic.name));
        next.delivered[nth] = true;
        next.row = rows.parcel(ORDER).cloned();
        next
    }

    fn keeps_the_promises(&self, asked: bool) -> bool {
        let [created, verified, cancelled] = self.delivered;
        let may_begin = asked && created && verified;
        match self.published[..] {
            [] => !may_begin && !cancelled,
            ["parcels.packed"] => may_begin && !cancelled,
            ["parcels.refused"] => may_begin,
            ["parcels.packed", "parcels.unpacked"] => may_begin && cancelled,
            ["parcels.unpacked"] => cancelled,
            _ => false,
        }
    }
}

#[test]
fn every_sequence_of_deliveries_keeps_the_promises() {
    for (asked, units, worlds) in [(true, 1, 13), (true, UNITS_MAX + 1, 13), (false, 1, 10)] {
        let (mut found, mut next) = (vec![World::default()], 0);
        while let Some(world) = found.get(next).cloned() {
            for world in [0, 1, 2].map(|nth| world.deliver(nth, (asked, units))) {
                assert!(world.keeps_the_promises(asked), "{world:?}");
                if !found.contains(&world) {
                    found.push(world);
                }
            }
            next += 1;
        }
        assert_eq!(found.len(), worlds, "asked: {asked}, {units} units");
    }
}

#[tokio::test]
async fn parcels_are_stored_once_balanced_and_republished() {
    let fixture = TestService::<Parcels>::new(SERVICE, sqlx::migrate!()).await;
    let id = Uuid::from_u128;
    for (nth, units) in [(1, 1), (2, 1), (3, UNITS_MAX + 1)] {
        let (event_id, order) = (Uuid::now_v7(), created(id(nth), true, units));
        for event_id in [event_id, event_id, Uuid::now_v7()] {
            fixture.deliver(&[(event_id, &order)], note_order).await.unwrap();
        }
    }
    for nth in [1, 2, 3, 5] {
        fixture.deliver(&[(Uuid::now_v7(), &verified(id(nth)))], note_payment).await.unwrap();
    }
    for nth in [2, 3, 4] {
        fixture.deliver(&[(Uuid::now_v7(), &cancelled(id(nth)))], undo).await.unwrap();
    }
    let client: TestClient = fixture.books(BOOKS);
    let expected =
        json!({"parcels": 5, "waiting": 1, "packed": 1, "balanced": true, "written_off": []});
    assert_eq!(client.get("/books").await.body, expected);
    let mut published = fixture.outbox_records().await;
    let (answer, again) = fixture.republished([Parcel::source()], json!({})).await;
    assert_eq!((answer.status, &answer.body["republished"]), (200, &json!(5)));
    published.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(again, published, "by order, and of each in the order in which it was published");
}
