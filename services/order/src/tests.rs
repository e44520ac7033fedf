//! The rules of the decider, by table and by property; then its edges on a real database.

use std::time::{Duration, Instant};

use chassis::event::{Answer, At, Event, Outcome};
use chassis::testing::{self, Bench, Client};
use chrono::DateTime;
use events::orders::CancelReason;
use events::payments::{DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{
    RejectReason, ReleasedLine, ReservedLine, StockItem, StockRejected, StockReleased,
    StockReserved,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use sqlx::types::Json;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::order::{
    CancelOrder, Item, Line, Order, Orders, PaymentLeg, PlaceOrder, Reason, Status, StockLeg,
    Wanted,
};
use crate::saga::{self, Refusal};
use crate::{api, deadline};

const ORDER: Uuid = Uuid::from_u128(7);
const CUSTOMER: Uuid = Uuid::from_u128(8);
const TOTAL_CENTS: i64 = 2 * 150 + 90;

fn at(nth: u128) -> At {
    let (event_id, cause) = (Uuid::from_u128(nth << 64 | 1), Some(Uuid::from_u128(nth << 64)));
    At { now: DateTime::from_timestamp(nth as i64, 0).unwrap(), event_id, cause }
}

fn euros() -> String {
    "EUR".into()
}

/// Two pens and an ink.
fn order(order_id: Uuid, status: Status, payment: PaymentLeg, stock: StockLeg) -> Order {
    let line = |sku: &str, quantity, unit_price_cents| Line {
        sku: sku.into(),
        quantity,
        unit_price_cents,
    };
    let ended = status != Status::Pending;
    Order {
        order_id,
        customer_id: CUSTOMER,
        status,
        reason: (status == Status::Cancelled).then_some(Reason::Deadline),
        payment,
        stock,
        total_cents: TOTAL_CENTS,
        currency: euros(),
        lines: Json(vec![line("pen", 2, 150), line("ink", 1, 90)]),
        created_at: at(0).now,
        ended_at: ended.then_some(at(0).now),
        created_event_id: Uuid::max(),
        ended_event_id: ended.then(Uuid::max),
    }
}

fn rows(order: Order) -> Orders {
    let mut rows = Orders::default();
    rows.put_order(order);
    rows
}

/// What payment and stock can answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Heard {
    Verified,
    Declined,
    Refunded,
    PaymentVoid,
    Reserved,
    Rejected,
    Released,
    StockVoid,
}

use Heard::*;

const ALL: [Heard; 8] =
    [Verified, Declined, Refunded, PaymentVoid, Reserved, Rejected, Released, StockVoid];

fn verified(order_id: Uuid) -> PaymentVerified {
    PaymentVerified {
        order_id,
        amount_cents: TOTAL_CENTS,
        currency: euros(),
        occurred_at: at(1).now,
    }
}

fn declined(order_id: Uuid) -> PaymentDeclined {
    PaymentDeclined { order_id, reason: DeclineReason::NoAccount, occurred_at: at(1).now }
}

fn refunded(order_id: Uuid, amount_cents: Option<i64>) -> PaymentRefunded {
    let currency = amount_cents.map(|_| euros());
    PaymentRefunded { order_id, amount_cents, currency, occurred_at: at(1).now }
}

/// By SKU, as stock tells it; the order has its lines the other way round.
fn reserved(order_id: Uuid) -> StockReserved {
    let line = |sku: &str, quantity| ReservedLine { sku: sku.into(), quantity };
    StockReserved { order_id, lines: vec![line("ink", 1), line("pen", 2)], occurred_at: at(1).now }
}

fn rejected(order_id: Uuid) -> StockRejected {
    let (reason, sku) = (RejectReason::OutOfStock, "pen".into());
    StockRejected { order_id, reason, sku, requested: 2, available: 1, occurred_at: at(1).now }
}

fn released(order_id: Uuid, lines: &[(&str, i32)]) -> StockReleased {
    let line =
        |(sku, quantity): &(&str, i32)| ReleasedLine { sku: sku.to_string(), quantity: *quantity };
    StockReleased { order_id, lines: lines.iter().map(line).collect(), occurred_at: at(1).now }
}

/// The handler's answer: the topic it publishes to, nothing, or why the event cannot be.
fn hear(
    heard: Heard,
    order_id: Uuid,
    rows: &mut Orders,
    at: At,
) -> Result<Option<&'static str>, String> {
    fn topic(answer: Answer<impl Outcome>) -> Result<Option<&'static str>, String> {
        let event = answer.map_err(|impossible| impossible.0)?;
        Ok(event.and_then(Outcome::publish).map(|event| event.topic.name))
    }
    match heard {
        Verified => topic(saga::payment_verified(&verified(order_id), rows, at)),
        Declined => topic(saga::payment_declined(&declined(order_id), rows, at)),
        Refunded => topic(saga::payment_refunded(&refunded(order_id, Some(TOTAL_CENTS)), rows, at)),
        PaymentVoid => topic(saga::payment_refunded(&refunded(order_id, None), rows, at)),
        Reserved => topic(saga::stock_reserved(&reserved(order_id), rows, at)),
        Rejected => topic(saga::stock_rejected(&rejected(order_id), rows, at)),
        Released => {
            topic(saga::stock_released(&released(order_id, &[("ink", 1), ("pen", 2)]), rows, at))
        }
        StockVoid => topic(saga::stock_released(&released(order_id, &[]), rows, at)),
    }
}

const STATUSES: [Status; 3] = [Status::Pending, Status::Confirmed, Status::Cancelled];

const PAYMENT_LEGS: [PaymentLeg; 5] = [
    PaymentLeg::Waiting,
    PaymentLeg::Verified,
    PaymentLeg::Declined,
    PaymentLeg::Refunded,
    PaymentLeg::Void,
];

const STOCK_LEGS: [StockLeg; 5] =
    [StockLeg::Waiting, StockLeg::Reserved, StockLeg::Rejected, StockLeg::Released, StockLeg::Void];

/// Where a leg goes, by where it is: waiting, yes, no, undone, void; `None` where that cannot be.
fn climbs(heard: Heard) -> [Option<usize>; 5] {
    const WAITING_TO: fn(usize) -> Option<usize> = Some;
    match heard {
        Verified | Reserved => [WAITING_TO(1), Some(1), None, Some(3), None],
        Declined | Rejected => [WAITING_TO(2), None, Some(2), None, None],
        Refunded | Released => [WAITING_TO(3), Some(3), None, Some(3), None],
        PaymentVoid | StockVoid => [WAITING_TO(4), None, None, None, Some(4)],
    }
}

#[test]
fn every_answer_in_every_state_moves_its_leg_up_and_lets_the_row_decide_once() {
    for (status, payment, stock, heard) in every_state() {
        let case = format!("{heard:?} heard when {status:?}, {payment}, {stock}");
        let before = order(ORDER, status, PAYMENT_LEGS[payment], STOCK_LEGS[stock]);
        let mut rows = rows(before.clone());
        let answer = hear(heard, ORDER, &mut rows, at(1));
        let after = rows.order(ORDER).unwrap();
        let heard_at = |nth: usize| (rows.history()[nth].event, rows.history()[nth].event_id);

        let of_payment = matches!(heard, Verified | Declined | Refunded | PaymentVoid);
        let undoes = matches!(heard, Refunded | PaymentVoid | Released | StockVoid);
        let to = climbs(heard)[if of_payment { payment } else { stock }];
        let Some(to) = to.filter(|_| !undoes || status == Status::Cancelled) else {
            assert!(answer.is_err(), "{case}: {answer:?}");
            assert_eq!((after, rows.history().len()), (&before, 0), "{case}");
            continue;
        };
        let mut expected = before.clone();
        match of_payment {
            true => expected.payment = PAYMENT_LEGS[to],
            false => expected.stock = STOCK_LEGS[to],
        }
        let both = (expected.payment, expected.stock) == (PaymentLeg::Verified, StockLeg::Reserved);
        let decided = match heard {
            Verified | Reserved if both => Some(("orders.confirmed", Status::Confirmed, None)),
            Declined => {
                Some(("orders.cancelled", Status::Cancelled, Some(Reason::PaymentDeclined)))
            }
            Rejected => Some(("orders.cancelled", Status::Cancelled, Some(Reason::StockRejected))),
            _ => None,
        };
        let decided = decided.filter(|_| status == Status::Pending);
        if let Some((_, status, reason)) = decided {
            (expected.status, expected.reason) = (status, reason);
            (expected.ended_at, expected.ended_event_id) = (Some(at(1).now), Some(at(1).event_id));
        }
        assert_eq!(after, &expected, "{case}");
        assert_eq!(answer, Ok(decided.map(|(topic, ..)| topic)), "{case}");
        assert_eq!(heard_at(0).1, at(1).cause.unwrap(), "{case}");
        assert_eq!(rows.history().len(), 1 + usize::from(decided.is_some()), "{case}");
        if let Some((topic, ..)) = decided {
            assert_eq!(heard_at(1), (topic, at(1).event_id), "{case}");
        }
    }
}

fn every_state() -> impl Iterator<Item = (Status, usize, usize, Heard)> {
    STATUSES.into_iter().flat_map(|status| {
        (0..25).flat_map(move |legs| {
            ALL.into_iter().map(move |heard| (status, legs / 5, legs % 5, heard))
        })
    })
}

#[test]
fn a_confirmed_order_is_announced_whole() {
    let mut rows = rows(order(ORDER, Status::Pending, PaymentLeg::Waiting, StockLeg::Reserved));
    let event = saga::payment_verified(&verified(ORDER), &mut rows, at(1)).unwrap().unwrap();
    assert_eq!(
        (event.order_id, event.customer_id, event.occurred_at),
        (ORDER, CUSTOMER, at(1).now)
    );
    assert_eq!((event.total_cents, event.currency), (TOTAL_CENTS, euros()));
    let lines: Vec<_> =
        event.lines.iter().map(|l| (l.sku.as_str(), l.quantity, l.unit_price_cents)).collect();
    assert_eq!(lines, [("pen", 2, 150), ("ink", 1, 90)]);
}

#[test]
fn an_answer_to_an_order_that_nobody_placed_cannot_be() {
    for heard in ALL {
        let mut rows = Orders::default();
        hear(heard, ORDER, &mut rows, at(1)).unwrap_err();
        assert!(rows.order(ORDER).is_none() && rows.history().is_empty());
    }
}

#[test]
fn an_answer_about_something_else_than_was_ordered_cannot_be() {
    for status in STATUSES {
        let before = order(ORDER, status, PaymentLeg::Waiting, StockLeg::Waiting);
        let mut rows = rows(before.clone());
        let money = [(Some(TOTAL_CENTS - 1), "EUR"), (Some(0), "EUR"), (Some(TOTAL_CENTS), "CHF")];
        for (amount_cents, currency) in money {
            let currency = currency.to_string();
            let event = PaymentRefunded {
                currency: Some(currency.clone()),
                ..refunded(ORDER, amount_cents)
            };
            saga::payment_refunded(&event, &mut rows, at(1)).unwrap_err();
            let event = PaymentVerified {
                amount_cents: amount_cents.unwrap(),
                currency,
                ..verified(ORDER)
            };
            saga::payment_verified(&event, &mut rows, at(1)).unwrap_err();
        }
        let without_currency =
            PaymentRefunded { currency: None, ..refunded(ORDER, Some(TOTAL_CENTS)) };
        saga::payment_refunded(&without_currency, &mut rows, at(1)).unwrap_err();
        for lines in
            [&[("pen", 2)][..], &[("ink", 1), ("pen", 3)], &[("ink", 1), ("nib", 1), ("pen", 2)]]
        {
            saga::stock_released(&released(ORDER, lines), &mut rows, at(1)).unwrap_err();
            let line = |(sku, quantity): &(&str, i32)| ReservedLine {
                sku: sku.to_string(),
                quantity: *quantity,
            };
            let event =
                StockReserved { lines: lines.iter().map(line).collect(), ..reserved(ORDER) };
            saga::stock_reserved(&event, &mut rows, at(1)).unwrap_err();
        }
        let nothing = StockReserved { lines: vec![], ..reserved(ORDER) };
        saga::stock_reserved(&nothing, &mut rows, at(1)).unwrap_err();
        assert_eq!((rows.order(ORDER), rows.history().len()), (Some(&before), 0));
    }
}

fn item(sku: &str, price_cents: i64, currency: &str, version: i64) -> StockItem {
    let (sku, name, currency) = (sku.to_string(), format!("{sku} {version}"), currency.to_string());
    StockItem { sku, name, price_cents, currency, version, occurred_at: at(0).now }
}

fn items() -> Orders {
    let mut rows = Orders::default();
    for item in [item("pen", 150, "EUR", 1), item("ink", 90, "EUR", 1), item("nib", 1, "CHF", 1)] {
        saga::item_changed(&item, &mut rows, at(0)).unwrap();
    }
    rows
}

fn place(lines: &[(&str, i32)]) -> PlaceOrder {
    let line = |(sku, quantity): &(&str, i32)| Wanted { sku: sku.to_string(), quantity: *quantity };
    PlaceOrder { order_id: ORDER, customer_id: CUSTOMER, lines: lines.iter().map(line).collect() }
}

#[test]
fn a_placed_order_is_pending_and_announced_with_our_prices() {
    let mut rows = items();
    let at = At { cause: None, ..at(1) };
    let event =
        saga::place_order(&place(&[("pen", 2), ("ink", 1)]), &mut rows, at).unwrap().unwrap();
    assert_eq!((event.order_id, event.customer_id, event.occurred_at), (ORDER, CUSTOMER, at.now));
    assert_eq!((event.total_cents, event.currency), (TOTAL_CENTS, euros()));
    let lines: Vec<_> =
        event.lines.iter().map(|l| (l.sku.as_str(), l.quantity, l.unit_price_cents)).collect();
    assert_eq!(lines, [("pen", 2, 150), ("ink", 1, 90)]);
    let placed = order(ORDER, Status::Pending, PaymentLeg::Waiting, StockLeg::Waiting);
    let placed = Order { created_at: at.now, created_event_id: at.event_id, ..placed };
    assert_eq!(rows.order(ORDER), Some(&placed));
    let history: Vec<_> = rows.history().iter().map(|line| (line.event, line.event_id)).collect();
    assert_eq!(history, [("orders.created", at.event_id)]);
}

#[test]
fn a_refused_order_is_not_there() {
    for (lines, refusal) in [
        (&[("pen", 1), ("cap", 1)][..], Refusal::NoSuchItem { nth: 1 }),
        (&[("pen", 1), ("ink", 1), ("nib", 1)], Refusal::MixedCurrencies { nth: 2 }),
        (&[("ink", 1), ("gem", 1_000)], Refusal::TooMuch { nth: 1 }),
        (&[("gem", 1), ("gold", 1)], Refusal::TooMuch { nth: 1 }),
    ] {
        let mut rows = items();
        for sku in ["gem", "gold"] {
            saga::item_changed(&item(sku, i64::MAX / 2 + 1, "EUR", 1), &mut rows, at(0)).unwrap();
        }
        assert_eq!(saga::place_order(&place(lines), &mut rows, at(1)), Err(refusal));
        assert!(rows.order(ORDER).is_none() && rows.history().is_empty());
    }
}

#[test]
fn an_order_whose_earlier_try_was_committed_is_not_placed_again() {
    let before = order(ORDER, Status::Confirmed, PaymentLeg::Verified, StockLeg::Reserved);
    let mut rows = rows(before.clone());
    assert_eq!(saga::place_order(&place(&[("cap", 1)]), &mut rows, at(1)), Ok(None));
    assert_eq!((rows.order(ORDER), rows.history().len()), (Some(&before), 0));
}

#[test]
fn a_cancel_ends_a_pending_order_and_no_other() {
    for (reason, kept) in
        [(CancelReason::Customer, Reason::Customer), (CancelReason::Deadline, Reason::Deadline)]
    {
        for legs in 0..25 {
            let (payment, stock) = (PAYMENT_LEGS[legs / 5], STOCK_LEGS[legs % 5]);
            let cancel = CancelOrder { order_id: ORDER, reason };
            let pending = order(ORDER, Status::Pending, payment, stock);
            let mut rows_of_pending = rows(pending.clone());
            let event = saga::cancel_order(&cancel, &mut rows_of_pending, at(1)).unwrap().unwrap();
            assert_eq!(
                (event.order_id, event.reason, event.occurred_at),
                (ORDER, reason, at(1).now)
            );
            let (ended_at, ended_event_id) = (Some(at(1).now), Some(at(1).event_id));
            let (status, reason) = (Status::Cancelled, Some(kept));
            let ended = Order { status, reason, ended_at, ended_event_id, ..pending };
            assert_eq!(rows_of_pending.order(ORDER), Some(&ended));
            assert_eq!(rows_of_pending.history().len(), 1);

            for (status, answer) in
                [(Status::Cancelled, Ok(None)), (Status::Confirmed, Err(Refusal::AlreadyConfirmed))]
            {
                let before = order(ORDER, status, payment, stock);
                let mut rows = rows(before.clone());
                assert_eq!(saga::cancel_order(&cancel, &mut rows, at(1)), answer);
                assert_eq!((rows.order(ORDER), rows.history().len()), (Some(&before), 0));
            }
        }
    }
    let cancel = CancelOrder { order_id: ORDER, reason: CancelReason::Customer };
    assert_eq!(
        saga::cancel_order(&cancel, &mut Orders::default(), at(1)),
        Err(Refusal::NoSuchOrder)
    );
}

#[test]
fn of_an_item_the_highest_version_is_known_whatever_comes_last() {
    let mut rows = Orders::default();
    for (version, known) in [(2, 2), (1, 2), (2, 2), (5, 5), (4, 5)] {
        assert_eq!(
            saga::item_changed(&item("pen", version, "EUR", version), &mut rows, at(0)),
            Ok(None)
        );
        assert_eq!(
            rows.item("pen").map(|item| (item.version, item.price_cents)),
            Some((known, known))
        );
    }
    saga::item_changed(&item("pen", -1, "EUR", 9), &mut rows, at(0)).unwrap_err();
    let long = "x".repeat(65);
    saga::item_changed(&item(&long, 1, "EUR", 1), &mut rows, at(0)).unwrap_err();
    assert_eq!(rows.item("pen").unwrap().version, 5);
}

/// How far a leg has climbed.
fn height(leg: usize) -> usize {
    [0, 1, 2, 2, 2][leg]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// Whatever comes, in whatever order and however often: an order ends once and stays ended, legs
    /// only climb, and what is impossible or refused changes nothing.
    #[test]
    fn an_order_ends_once_and_its_legs_only_climb(
        steps in prop::collection::vec((0..3_u128, prop_oneof![9 => (0..ALL.len()).prop_map(Some), 1 => Just(None)]), 1..60),
    ) {
        let mut rows = Orders::default();
        for nth in 0..2 { // the third was never placed
            rows.put_order(order(Uuid::from_u128(nth), Status::Pending, PaymentLeg::Waiting, StockLeg::Waiting));
        }
        let mut ends = [0; 3];
        for (now, (nth, step)) in steps.into_iter().enumerate() {
            let (order_id, at) = (Uuid::from_u128(nth), at(now as u128 + 1));
            let (before, lines) = (rows.order(order_id).cloned(), rows.history().len());
            let published = match step {
                Some(heard) => hear(ALL[heard], order_id, &mut rows, at).map_err(|_| ()),
                None => {
                    let cancel = CancelOrder { order_id, reason: CancelReason::Customer };
                    let cancelled = saga::cancel_order(&cancel, &mut rows, at).map_err(|_| ());
                    cancelled.map(|event| event.map(|_| "orders.cancelled"))
                }
            };
            let after = rows.order(order_id).cloned();
            if published.is_err() {
                prop_assert_eq!((&after, rows.history().len()), (&before, lines));
            }
            let (Some(before), Some(after)) = (before, after) else { continue };
            if let Ok(Some(topic)) = published {
                ends[nth as usize] += 1;
                let confirmed = (topic == "orders.confirmed", after.status == Status::Confirmed);
                prop_assert!(confirmed.0 == confirmed.1 && after.status != Status::Pending);
                prop_assert_eq!((before.status, after.ended_event_id), (Status::Pending, Some(at.event_id)));
            } else {
                prop_assert_eq!(
                    (before.status, before.reason, before.ended_at, before.ended_event_id),
                    (after.status, after.reason, after.ended_at, after.ended_event_id)
                );
            }
            let place = |legs: &Order| (
                PAYMENT_LEGS.iter().position(|leg| *leg == legs.payment).unwrap(),
                STOCK_LEGS.iter().position(|leg| *leg == legs.stock).unwrap(),
            );
            for (was, is) in [(place(&before).0, place(&after).0), (place(&before).1, place(&after).1)] {
                prop_assert!(was == is || height(was) < height(is));
            }
            let no = after.payment == PaymentLeg::Declined || after.stock == StockLeg::Rejected;
            prop_assert!(!no || after.status == Status::Cancelled);
            let both = (after.payment, after.stock) == (PaymentLeg::Verified, StockLeg::Reserved);
            prop_assert!(after.status != Status::Confirmed || both);
        }
        prop_assert!(ends.iter().all(|times| *times <= 1));
    }
}

#[path = "../../../e2e/src/audit.rs"]
mod audit;

/// What the rows say of an order, in the words of its API.
fn standing(order: &Order) -> audit::Standing {
    let word = |value: Value| value.as_str().unwrap().to_string();
    let order = json!(order);
    audit::Standing {
        status: word(order["status"].clone()),
        reason: order["reason"].as_str().map(str::to_string),
        payment: word(order["payment"].clone()),
        stock: word(order["stock"].clone()),
        ended_at: serde_json::from_value(order["ended_at"].clone()).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// Whatever is heard and whoever cancels, at every moment the history alone tells where the
    /// order stands.
    #[test]
    fn a_history_comes_to_where_its_order_stands(
        steps in prop::collection::vec(prop_oneof![9 => (0..ALL.len()).prop_map(Some), 1 => Just(None)], 1..30),
    ) {
        let mut rows = items();
        saga::place_order(&place(&[("pen", 2), ("ink", 1)]), &mut rows, At { cause: None, ..at(1) }).unwrap();
        for (now, step) in steps.into_iter().enumerate() {
            let at = at(now as u128 + 2);
            match step {
                Some(heard) => drop(hear(ALL[heard], ORDER, &mut rows, at)),
                None => {
                    let cancel = CancelOrder { order_id: ORDER, reason: CancelReason::Customer };
                    let _ = saga::cancel_order(&cancel, &mut rows, At { cause: None, ..at });
                }
            }
            let lines = rows.history().iter().map(|entry| audit::Line {
                event: entry.event,
                detail: &entry.detail,
                occurred_at: entry.occurred_at,
            });
            prop_assert_eq!(audit::fold(lines), Ok(standing(rows.order(ORDER).unwrap())));
        }
    }
}

async fn bench() -> (Bench<Orders>, Client) {
    let bench = Bench::new("order", sqlx::migrate!()).await;
    let watch = bench.watch(&CancellationToken::new());
    let api = api::router(bench.db.clone(), bench.commands.clone(), watch);
    (bench, Client(api))
}

/// With the two items of [`order`] announced.
async fn stocked_bench() -> (Bench<Orders>, Client) {
    let (bench, client) = bench().await;
    let items = [item("pen", 150, "EUR", 1), item("ink", 90, "EUR", 1)];
    bring(&bench, &items, saga::item_changed).await;
    (bench, client)
}

async fn bring<E: Event, O: Outcome>(
    bench: &Bench<Orders>,
    events: &[E],
    handler: fn(&E, &mut Orders, At) -> Answer<O>,
) -> Vec<Uuid>
where
    Orders: chassis::rows::Touches<E>,
{
    let events: Vec<_> = events.iter().map(|event| (Uuid::now_v7(), event)).collect();
    bench.bring(&events, handler).await.unwrap()
}

fn wish() -> Value {
    let lines = json!([{"sku": "pen", "quantity": 2}, {"sku": "ink", "quantity": 1}]);
    json!({"customer_id": CUSTOMER, "lines": lines})
}

async fn placed(client: &Client) -> Uuid {
    let answer = client.post("/orders", None, wish()).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    serde_json::from_value(answer.body["order_id"].clone()).unwrap()
}

async fn books(bench: &Bench<Orders>) -> Value {
    Client(api::books(bench.db.clone())).get("/books").await.body
}

#[tokio::test]
async fn an_order_is_placed_shown_and_announced() {
    let (bench, client) = stocked_bench().await;
    let answer = client.post("/orders", None, wish()).await;
    let order_id = answer.body["order_id"].as_str().unwrap().to_string();
    assert_eq!((answer.status, answer.location), (201, Some(format!("/orders/{order_id}"))));
    let created_at = answer.body["created_at"].clone();
    let lines = json!([{"sku": "pen", "quantity": 2, "unit_price_cents": 150},
                       {"sku": "ink", "quantity": 1, "unit_price_cents": 90}]);
    let order = json!({"order_id": order_id, "customer_id": CUSTOMER, "status": "pending", "reason": null,
                       "payment": "waiting", "stock": "waiting", "total_cents": 390, "currency": "EUR",
                       "lines": lines, "created_at": created_at, "ended_at": null});
    assert_eq!(answer.body, order);
    assert_eq!(client.get(&format!("/orders/{order_id}")).await.body, order);
    let mine = client.get(&format!("/orders?customer_id={CUSTOMER}")).await.body;
    assert_eq!(mine, json!({"orders": [order], "next": null}));
    let others = client.get(&format!("/orders?customer_id={ORDER}")).await.body;
    assert_eq!(others, json!({"orders": [], "next": null}));

    let outbox = bench.outbox().await;
    let created_event_id: Uuid = sqlx::query_scalar("select created_event_id from orders")
        .fetch_one(&bench.db)
        .await
        .unwrap();
    assert_eq!(outbox, [("orders.created".to_string(), order_id.clone(), created_event_id)]);
    let history = client.get(&format!("/orders/{order_id}/history")).await.body;
    assert_eq!(history["order_id"], json!(order_id));
    let line = &history["history"][0];
    assert_eq!(
        (&line["event"], &line["event_id"]),
        (&json!("orders.created"), &json!(created_event_id))
    );
    assert_eq!((&line["detail"]["total_cents"], &line["occurred_at"]), (&json!(390), &created_at));
    assert_eq!(history["history"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let (_bench, client) = bench().await;
    for place in
        [format!("/orders/{ORDER}"), format!("/orders/{ORDER}/history"), "/orders/7".into()]
    {
        let answer = client.get(&place).await;
        assert_eq!((answer.status, &answer.body["type"]), (404, &json!("/problems/not-found")));
    }
    assert_eq!(client.post(&format!("/orders/{ORDER}/cancel"), None, json!({})).await.status, 404);
    let unasked = client.get("/orders").await;
    assert_eq!((unasked.status, &unasked.body["field"]), (422, &json!("customer_id")));
}

#[tokio::test]
async fn what_is_over_a_limit_is_refused_by_its_field_and_not_stored() {
    let (bench, client) = stocked_bench().await;
    bring(
        &bench,
        &[item("nib", 1, "CHF", 1), item("gem", i64::MAX / 2, "EUR", 1)],
        saga::item_changed,
    )
    .await;
    let line = |sku: &str, quantity: i64| json!({"sku": sku, "quantity": quantity});
    let many: Vec<Value> = (0..51).map(|nth| line(&format!("pen{nth}"), 1)).collect();
    for (lines, field) in [
        (json!([]), "lines"),
        (json!(many), "lines"),
        (json!([line("pen", 0)]), "lines[0].quantity"),
        (json!([line("ink", 1), line("pen", -1)]), "lines[1].quantity"),
        (json!([line("pen", 1_001)]), "lines[0].quantity"),
        (json!([line("pen", 1 << 40)]), "lines[0].quantity"),
        (json!([{"sku": "pen"}]), "lines[0].quantity"),
        (json!([line("", 1)]), "lines[0].sku"),
        (json!([line(&"x".repeat(65), 1)]), "lines[0].sku"),
        (json!([line("a\u{0}b", 1)]), "lines[0].sku"),
        (json!([line("pen", 1), line("ink", 1), line("pen", 1)]), "lines[2].sku"),
        (json!([line("pen", 1), line("cap", 1)]), "lines[1].sku"),
        (json!([line("pen", 1), line("nib", 1)]), "lines[1].sku"),
        (json!([line("pen", 1), line("gem", 3)]), "lines[1].quantity"),
        (
            json!([{"sku": "pen", "quantity": 1, "unit_price_cents": 1}]),
            "lines[0].unit_price_cents",
        ),
        (json!("pen"), "lines"),
    ] {
        let refused = client
            .post("/orders", Some("a"), json!({"customer_id": CUSTOMER, "lines": lines}))
            .await;
        assert_eq!(
            (refused.status, refused.body["field"].as_str()),
            (422, Some(field)),
            "{refused:?}"
        );
    }
    for (wish, field) in [
        (json!({"lines": [line("pen", 1)]}), "customer_id"),
        (json!({"customer_id": "me", "lines": [line("pen", 1)]}), "customer_id"),
        (
            json!({"customer_id": CUSTOMER, "lines": [line("pen", 1)], "total_cents": 1}),
            "total_cents",
        ),
    ] {
        let refused = client.post("/orders", Some("a"), wish).await;
        assert_eq!(
            (refused.status, refused.body["field"].as_str()),
            (422, Some(field)),
            "{refused:?}"
        );
    }
    for table in ["orders", "history", "outbox", "idempotency_keys"] {
        assert_eq!(bench.count(table).await, 0, "{table}");
    }
    let answer = client.post("/orders", Some("a"), wish()).await;
    assert_eq!(answer.status, 201, "refusals are not remembered");
}

#[tokio::test]
async fn the_largest_order_is_taken() {
    let (bench, client) = bench().await;
    let skus: Vec<String> = (10..60).map(|nth| format!("{}{nth}", "ü".repeat(62))).collect();
    let items: Vec<StockItem> = skus.iter().map(|sku| item(sku, 1_000_000_000, "EUR", 1)).collect();
    bring(&bench, &items, saga::item_changed).await;
    let lines: Vec<Value> = skus.iter().map(|sku| json!({"sku": sku, "quantity": 1_000})).collect();
    let answer =
        client.post("/orders", None, json!({"customer_id": CUSTOMER, "lines": lines})).await;
    assert_eq!((answer.status, &answer.body["total_cents"]), (201, &json!(50_000_000_000_000_i64)));
    let size: i32 = sqlx::query_scalar("select octet_length(body) from outbox")
        .fetch_one(&bench.db)
        .await
        .unwrap();
    assert!(size < 64 * 1024, "{size}");
}

#[tokio::test]
async fn an_order_that_is_asked_for_twice_with_a_key_is_placed_once() {
    let (bench, client) = stocked_bench().await;
    let first = client.post("/orders", Some("a"), wish()).await;
    let again = client.post("/orders", Some("a"), wish()).await;
    assert_eq!((again.status, &again.body, &again.location), (201, &first.body, &first.location));
    let other = json!({"customer_id": CUSTOMER, "lines": [{"sku": "pen", "quantity": 1}]});
    let other = client.post("/orders", Some("a"), other).await;
    assert_eq!(
        (other.status, &other.body["type"]),
        (422, &json!("/problems/idempotency-key-reused"))
    );
    let together =
        futures::future::join_all((0..20).map(|_| client.post("/orders", Some("b"), wish()))).await;
    assert!(together.iter().all(|answer| answer.status == 201 && answer.body == together[0].body));
    assert_eq!((bench.count("orders").await, bench.count("outbox").await), (2, 2));
    placed(&client).await;
    placed(&client).await;
    assert_eq!(bench.count("orders").await, 4, "without a key each is an order");
}

#[tokio::test]
async fn a_customer_cancels_once_and_not_what_is_confirmed() {
    let (bench, client) = stocked_bench().await;
    let order_id = placed(&client).await;
    let place = format!("/orders/{order_id}/cancel");
    let cancelled = client.post(&place, None, json!({})).await;
    assert_eq!((cancelled.status, &cancelled.body["status"]), (200, &json!("cancelled")));
    assert_eq!(cancelled.body["reason"], "customer");
    assert!(cancelled.body["ended_at"].is_string());
    let again = client.post(&place, Some("a"), json!({})).await;
    assert_eq!((again.status, &again.body), (200, &cancelled.body));
    let topics: Vec<_> = bench.outbox().await.into_iter().map(|(topic, ..)| topic).collect();
    assert_eq!(topics, ["orders.created", "orders.cancelled"]);

    let order_id = placed(&client).await;
    assert!(bring(&bench, &[verified(order_id)], saga::payment_verified).await.is_empty());
    let confirmed = bring(&bench, &[reserved(order_id)], saga::stock_reserved).await;
    let refused = client.post(&format!("/orders/{order_id}/cancel"), Some("a"), json!({})).await;
    assert_eq!((refused.status, &refused.body["type"]), (409, &json!("/problems/order-confirmed")));
    let order = client.get(&format!("/orders/{order_id}")).await.body;
    assert_eq!(
        (&order["status"], &order["payment"], &order["stock"]),
        (&json!("confirmed"), &json!("verified"), &json!("reserved"))
    );
    assert_eq!(
        bench.outbox().await[3],
        ("orders.confirmed".into(), order_id.to_string(), confirmed[0])
    );
    let history = client.get(&format!("/orders/{order_id}/history")).await.body;
    let history: Vec<_> = history["history"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["event"].as_str().unwrap().to_string())
        .collect();
    assert_eq!(
        history,
        ["orders.created", "payments.verified", "stock.reserved", "orders.confirmed"]
    );
    let counts = json!({"pending": 0, "confirmed": 1, "cancelled": 1});
    assert_eq!(
        books(&bench).await,
        json!({"orders": counts, "confirmed_cents": 390, "balanced": true, "written_off": []})
    );
}

#[tokio::test]
async fn the_first_no_cancels_and_what_comes_later_moves_its_leg_only() {
    let (bench, client) = stocked_bench().await;
    let order_id = placed(&client).await;
    bring(&bench, &[rejected(order_id)], saga::stock_rejected).await;
    let shown = async || client.get(&format!("/orders/{order_id}")).await.body;
    let ended = shown().await;
    assert_eq!(
        (&ended["status"], &ended["reason"], &ended["payment"]),
        (&json!("cancelled"), &json!("stock_rejected"), &json!("waiting"))
    );
    assert!(bring(&bench, &[verified(order_id)], saga::payment_verified).await.is_empty());
    bring(&bench, &[refunded(order_id, Some(TOTAL_CENTS))], saga::payment_refunded).await;
    let settled = shown().await;
    assert_eq!((&settled["payment"], &settled["stock"]), (&json!("refunded"), &json!("rejected")));
    assert_eq!((&settled["ended_at"], &settled["reason"]), (&ended["ended_at"], &ended["reason"]));
    assert_eq!(bench.count("outbox").await, 2);
}

#[tokio::test]
async fn an_event_that_the_inbox_forgot_changes_nothing_when_it_comes_again() {
    let (bench, client) = stocked_bench().await;
    let (order_id, event_id) = (placed(&client).await, Uuid::now_v7());
    bench.bring(&[(event_id, &verified(order_id))], saga::payment_verified).await.unwrap();
    let before = client.get(&format!("/orders/{order_id}/history")).await.body;
    let known =
        bench.bring(&[(event_id, &verified(order_id))], saga::payment_verified).await.unwrap();
    sqlx::query("delete from inbox").execute(&bench.db).await.unwrap();
    let forgotten =
        bench.bring(&[(event_id, &verified(order_id))], saga::payment_verified).await.unwrap();
    assert!(known.is_empty() && forgotten.is_empty());
    assert_eq!(client.get(&format!("/orders/{order_id}/history")).await.body, before);
}

#[tokio::test]
async fn a_batch_of_answers_is_one_transaction() {
    let (bench, client) = stocked_bench().await;
    let (one, other) = (placed(&client).await, placed(&client).await);
    bring(&bench, &[verified(other), verified(one)], saga::payment_verified).await;
    let confirmed = bring(&bench, &[reserved(one), reserved(other)], saga::stock_reserved).await;
    let ended: Vec<Option<Uuid>> =
        sqlx::query_scalar("select ended_event_id from orders order by order_id")
            .fetch_all(&bench.db)
            .await
            .unwrap();
    assert_eq!(ended, confirmed.into_iter().map(Some).collect::<Vec<_>>());
    let events = [reserved(one), reserved(Uuid::now_v7())];
    let events: Vec<_> = events.iter().map(|event| (Uuid::now_v7(), event)).collect();
    let inbox = bench.count("inbox").await;
    bench.bring(&events, saga::stock_reserved).await.unwrap_err();
    assert_eq!(bench.count("inbox").await, inbox, "an impossible event takes its whole batch back");
}

#[tokio::test]
async fn items_are_listed_as_stock_last_announced_them() {
    let (bench, client) = stocked_bench().await;
    // In one batch: one is new, one is newer, one is older than what is known.
    let batch = [item("nib", 5, "EUR", 1), item("pen", 160, "EUR", 3), item("pen", 155, "EUR", 2)];
    bring(&bench, &batch, saga::item_changed).await;
    bring(&bench, &[item("pen", 1, "EUR", 2)], saga::item_changed).await;
    let item = |sku: &str, price_cents: i64, version: i64| {
        json!({"sku": sku, "name": format!("{sku} {version}"), "price_cents": price_cents,
               "currency": "EUR", "version": version})
    };
    let items = json!([item("ink", 90, 1), item("nib", 5, 1), item("pen", 160, 3)]);
    assert_eq!(client.get("/items").await.body, json!({"items": items, "next": null}));
}

#[tokio::test]
async fn a_version_that_another_instance_wrote_meanwhile_is_not_replaced_by_an_older_one() {
    use chassis::rows::Rows;
    let (bench, _client) = stocked_bench().await;
    let mut slow = bench.db.begin().await.unwrap();
    let mut rows = Orders::load(&mut slow, Default::default()).await.unwrap();
    rows.put_item(Item {
        sku: "pen".into(),
        name: "Pen".into(),
        price_cents: 2,
        currency: euros(),
        version: 2,
    });
    bring(&bench, &[item("pen", 3, "EUR", 3)], saga::item_changed).await;
    rows.save(&mut slow).await.unwrap();
    slow.commit().await.unwrap();
    let version: i64 = sqlx::query_scalar("select version from items where sku = 'pen'")
        .fetch_one(&bench.db)
        .await
        .unwrap();
    assert_eq!(version, 3);
}

#[tokio::test]
async fn batches_that_touch_the_same_orders_the_other_way_round_wait_and_never_in_a_circle() {
    let (bench, client) = stocked_bench().await;
    for _ in 0..5 {
        let mut ids = Vec::new();
        for _ in 0..20 {
            ids.push(placed(&client).await);
        }
        let payments: Vec<_> = ids.iter().map(|id| verified(*id)).collect();
        let stock: Vec<_> = ids.iter().rev().map(|id| reserved(*id)).collect();
        let (payments, stock) = tokio::join!(
            bring(&bench, &payments, saga::payment_verified),
            bring(&bench, &stock, saga::stock_reserved)
        );
        assert_eq!(payments.len() + stock.len(), 20, "each is confirmed once");
    }
    assert_eq!(books(&bench).await["orders"]["confirmed"], 100);
}

#[tokio::test]
async fn the_deadline_ends_what_is_overdue_and_pending_and_nothing_else() {
    let (bench, client) = stocked_bench().await;
    let (confirmed, overdue, other, young) = (
        placed(&client).await,
        placed(&client).await,
        placed(&client).await,
        placed(&client).await,
    );
    bring(&bench, &[verified(confirmed)], saga::payment_verified).await;
    bring(&bench, &[reserved(confirmed)], saga::stock_reserved).await;
    // By the database's time the last is young; its id says nothing.
    sqlx::query(
        "update orders set created_at = created_at - interval '1 minute' where order_id <> $1",
    )
    .bind(young)
    .execute(&bench.db)
    .await
    .unwrap();
    let mut ended_up_to = Uuid::nil();
    let deadline = Duration::from_secs(30);
    deadline::once(&bench.db, &bench.commands, deadline, &mut ended_up_to).await.unwrap();
    let status = async |order_id: Uuid| {
        let order = client.get(&format!("/orders/{order_id}")).await.body;
        (order["status"].as_str().unwrap().to_string(), order["reason"].clone())
    };
    assert_eq!(status(confirmed).await, ("confirmed".into(), Value::Null));
    assert_eq!(status(overdue).await, ("cancelled".into(), json!("deadline")));
    assert_eq!(status(other).await, ("cancelled".into(), json!("deadline")));
    assert_eq!(status(young).await, ("pending".into(), Value::Null));
    let cancelled: Vec<_> = bench
        .outbox()
        .await
        .into_iter()
        .filter(|(topic, ..)| topic == "orders.cancelled")
        .collect();
    let keys: Vec<_> = cancelled.iter().map(|(_, key, _)| key.as_str()).collect();
    assert_eq!(keys, [overdue.to_string(), other.to_string()], "oldest first");

    deadline::once(&bench.db, &bench.commands, deadline, &mut ended_up_to).await.unwrap();
    assert_eq!(bench.count("outbox").await, 7, "nothing is cancelled twice");
}

#[tokio::test]
async fn an_order_that_is_overdue_later_than_one_with_a_greater_id_is_ended_too() {
    let (bench, client) = stocked_bench().await;
    let (slow, quick) = (placed(&client).await, placed(&client).await);
    let past =
        "update orders set created_at = created_at - interval '1 minute' where order_id = $1";
    sqlx::query(past).bind(quick).execute(&bench.db).await.unwrap();
    let mut ended_up_to = Uuid::nil();
    let deadline = Duration::from_secs(30);
    deadline::once(&bench.db, &bench.commands, deadline, &mut ended_up_to).await.unwrap();
    assert_eq!(client.get(&format!("/orders/{slow}")).await.body["status"], "pending");
    sqlx::query(past).bind(slow).execute(&bench.db).await.unwrap();
    deadline::once(&bench.db, &bench.commands, deadline, &mut ended_up_to).await.unwrap();
    assert_eq!(client.get(&format!("/orders/{slow}")).await.body["status"], "cancelled");
}

#[tokio::test]
async fn what_was_published_is_announced_again_word_for_word() {
    let (bench, client) = stocked_bench().await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(placed(&client).await);
    }
    bring(&bench, &[verified(ids[0])], saga::payment_verified).await;
    bring(&bench, &[reserved(ids[0])], saga::stock_reserved).await;
    bring(&bench, &[declined(ids[1])], saga::payment_declined).await;
    bring(&bench, &[rejected(ids[2])], saga::stock_rejected).await;
    client.post(&format!("/orders/{}/cancel", ids[3]), None, json!({})).await;
    sqlx::query("update orders set created_at = now() - interval '1 minute' where order_id = $1")
        .bind(ids[4])
        .execute(&bench.db)
        .await
        .unwrap();
    // Its record said another time, which is nothing that happens.
    sqlx::query("delete from outbox where key = $1")
        .bind(ids[4].to_string())
        .execute(&bench.db)
        .await
        .unwrap();
    let (_, created) = bench.announced([orders()], json!({"key": ids[4]})).await;
    assert_eq!(created.len(), 1);
    deadline::once(&bench.db, &bench.commands, Duration::from_secs(30), &mut Uuid::nil())
        .await
        .unwrap();
    let mut said = bench.said().await;
    let (answer, again) = bench.announced([orders()], json!({})).await;
    assert_eq!((answer.status, &answer.body["announced"]), (200, &json!(11)));
    said.sort_by(|a, b| a.2.cmp(&b.2));
    assert_eq!(again, said, "by order, and of each in the order in which it was said");
}

fn orders() -> chassis::announce::Source {
    chassis::announce::of::<Order>()
}

#[test]
fn to_discard_an_event_costs_what_it_would_have_told_and_says_so() {
    let pending = rows(order(ORDER, Status::Pending, PaymentLeg::Waiting, StockLeg::Waiting));
    let ended = rows(order(ORDER, Status::Cancelled, PaymentLeg::Verified, StockLeg::Reserved));
    let nothing = Orders::default();
    for (orders, offers) in [(&pending, true), (&ended, false), (&nothing, false)] {
        for loss in [
            saga::verification_discarded(&verified(ORDER), orders),
            saga::decline_discarded(&declined(ORDER), orders),
            saga::reservation_discarded(&reserved(ORDER), orders),
            saga::rejection_discarded(&rejected(ORDER), orders),
        ] {
            let path = loss.offer.as_ref().map(|offer| offer.path.clone());
            assert_eq!(path, offers.then(|| format!("/orders/{ORDER}/cancel")), "{loss:?}");
            assert_eq!(loss.write_offs, []);
        }
    }
    let write_offs = |loss: chassis::loss::Loss| {
        let write_offs = loss.write_offs.into_iter();
        write_offs.map(|w| (w.amount, w.unit)).collect::<Vec<(i64, String)>>()
    };
    let refund =
        |amount, orders| write_offs(saga::refund_discarded(&refunded(ORDER, amount), orders));
    assert_eq!(refund(Some(TOTAL_CENTS), &ended), [(TOTAL_CENTS, "EUR cents".to_string())]);
    assert_eq!(refund(None, &ended), [], "nothing had been taken");
    assert_eq!(refund(Some(TOTAL_CENTS), &nothing), [], "it is nobody's");
    let release = released(ORDER, &[("ink", 1), ("pen", 2)]);
    let due = [(1, "ink".to_string()), (2, "pen".to_string())];
    assert_eq!(write_offs(saga::release_discarded(&release, &ended)), due);
    assert_eq!(write_offs(saga::release_discarded(&release, &nothing)), []);
    let items = items();
    for (version, is_lost) in [(1, false), (9, true)] {
        let sku = items.item("pen").map(|item| item.sku.clone()).unwrap();
        let loss = saga::item_discarded(&item(&sku, 1, "EUR", version), &items);
        assert_eq!(loss.consequence.starts_with("Nothing is lost"), !is_lost, "{loss:?}");
    }
}

#[test]
fn the_committed_openapi_document_is_what_the_code_says() {
    testing::compare_openapi("order", env!("CARGO_MANIFEST_DIR"), &api::routes());
}

/// As another replica answers, which hears nothing of what this bench commits.
fn elsewhere(bench: &Bench<Orders>) -> Client {
    let watch = bench.watch_elsewhere(&CancellationToken::new());
    Client(api::router(bench.db.clone(), bench.commands.clone(), watch))
}

async fn text(response: axum::response::Response) -> String {
    let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn an_order_that_ends_on_one_replica_wakes_who_waits_for_it_on_any() {
    let (bench, client) = stocked_bench().await;
    for waiting in [elsewhere(&bench), client.clone()] {
        let order_id = placed(&client).await;
        let (place, began) = (format!("/orders/{order_id}"), Instant::now());
        let wait = waiting.ask(&place, &[("prefer", "wait=10")]);
        let end = async {
            tokio::time::sleep(Duration::from_millis(200)).await;
            bring(&bench, &[verified(order_id)], saga::payment_verified).await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            bring(&bench, &[reserved(order_id)], saga::stock_reserved).await;
        };
        let (answer, ()) = tokio::join!(wait, end);
        assert!((400..5_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
        assert_eq!(answer.headers()["preference-applied"], "wait=10");
        let order: Value = serde_json::from_str(&text(answer).await).unwrap();
        assert_eq!(order, client.get(&place).await.body);
        assert_eq!(order["status"], "confirmed");

        let began = Instant::now();
        let answer = waiting.ask(&place, &[("prefer", "wait=10")]).await;
        assert!(answer.status() == 200 && began.elapsed() < Duration::from_secs(2), "it is over");
    }
}

#[tokio::test]
async fn a_wait_ends_in_time_with_the_order_as_it_is() {
    let (_bench, client) = stocked_bench().await;
    let place = format!("/orders/{}", placed(&client).await);
    let began = Instant::now();
    let answer = client.ask(&place, &[("prefer", "wait=1")]).await;
    assert!((1_000..5_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["preference-applied"]),
        (200, &"wait=1".parse().unwrap())
    );
    assert!(text(answer).await.contains(r#""status":"pending""#));
    for unread in [&[][..], &[("prefer", "wait=soon")]] {
        let began = Instant::now();
        let answer = client.ask(&place, unread).await;
        assert!(answer.status() == 200 && !answer.headers().contains_key("preference-applied"));
        assert!(began.elapsed() < Duration::from_secs(1));
    }
    let nowhere = client.ask(&format!("/orders/{ORDER}"), &[("prefer", "wait=10")]).await;
    assert_eq!(nowhere.status(), 404);
}

#[tokio::test]
async fn an_order_is_followed_to_its_end_and_a_stream_that_broke_is_resumed() {
    let (bench, client) = stocked_bench().await;
    let order_id = placed(&client).await;
    let place = format!("/orders/{order_id}/events");
    let stream = elsewhere(&bench).ask(&place, &[]).await;
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let end = async {
        bring(&bench, &[verified(order_id)], saga::payment_verified).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        bring(&bench, &[rejected(order_id)], saga::stock_rejected).await;
        let refunded = refunded(order_id, Some(TOTAL_CENTS));
        bring(&bench, &[refunded], saga::payment_refunded).await;
    };
    let (told, ()) = tokio::join!(text(stream), end);
    let history = client.get(&format!("/orders/{order_id}/history")).await.body;
    let history = history["history"].as_array().unwrap();
    let events: Vec<_> = history.iter().map(|entry| entry["event"].as_str().unwrap()).collect();
    let whole = ["orders.created", "payments.verified", "stock.rejected", "orders.cancelled"];
    assert_eq!(events, [&whole[..], &["payments.refunded"]].concat());

    let ids: Vec<_> = history.iter().map(|entry| entry["event_id"].as_str().unwrap()).collect();
    for (nth, event) in told.split_terminator("\n\n").enumerate() {
        let line = |name| event.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        assert_eq!((line("event: "), line("id: ")), (events[nth], ids[nth]));
        assert_eq!(&serde_json::from_str::<Value>(line("data: ")).unwrap(), &history[nth]);
    }
    assert_eq!(told.matches("\n\n").count(), 4, "it ends with the order: {told}");

    let rest = text(client.ask(&place, &[("last-event-id", ids[1])]).await).await;
    assert!(rest.starts_with(&format!("id: {}\n", ids[2])), "{rest}");
    assert_eq!(rest.matches("\n\n").count(), 2);
    for seen in &ids[3..] {
        assert_eq!(client.ask(&place, &[("last-event-id", seen)]).await.status(), 204);
    }
    assert_eq!(client.get(&format!("/orders/{ORDER}/events")).await.status, 404);
}

/// Pages through a list, with something going on after each page, and answers every key that it saw.
async fn paged(
    client: &Client,
    list: &str,
    (rows, key): (&str, &str),
    mut meanwhile: impl AsyncFnMut(),
) -> Vec<String> {
    let (mut seen, mut next) = (Vec::new(), String::new());
    for _ in 0..100 {
        let page = client.get(&format!("{list}limit=3{next}")).await;
        assert_eq!(page.status, 200, "{page:?}");
        let rows = page.body[rows].as_array().unwrap();
        assert!(rows.len() == 3 || page.body["next"].is_null(), "{page:?}");
        seen.extend(rows.iter().map(|row| row[key].as_str().unwrap().to_owned()));
        let Some(after) = page.body["next"].as_str() else { return seen };
        assert_eq!(seen.last().unwrap(), after);
        next = format!("&after={after}");
        meanwhile().await;
    }
    panic!("a list without an end");
}

#[tokio::test]
async fn paging_through_a_list_that_grows_shows_what_was_there_exactly_once() {
    let (bench, client) = stocked_bench().await;
    let mut there = Vec::new();
    for _ in 0..10 {
        there.push(placed(&client).await.to_string());
    }
    let mine = format!("/orders?customer_id={CUSTOMER}&");
    let seen = paged(&client, &mine, ("orders", "order_id"), async || {
        placed(&client).await;
    });
    there.reverse();
    assert_eq!(seen.await, there, "newest first");

    let numbered = |nth: usize| item(&format!("sku-{nth:02}"), 1, "EUR", 1);
    let even: Vec<_> = (0..10).map(|nth| numbered(2 * nth)).collect();
    bring(&bench, &even, saga::item_changed).await;
    let mut later = (0..10).map(|nth| numbered(2 * nth + 1));
    let seen = paged(&client, "/items?", ("items", "sku"), async || {
        bring(&bench, &[later.next().unwrap()], saga::item_changed).await;
    });
    let (mut seen, even) = (seen.await, even.iter().map(|item| item.sku.clone()));
    assert!(seen.is_sorted_by(|a, b| a < b), "by SKU, and none twice: {seen:?}");
    let expected: Vec<_> = ["ink", "pen"].map(String::from).into_iter().chain(even).collect();
    seen.retain(|sku| !came_later(sku));
    assert_eq!(seen, expected);
}

/// Whether an item came while the list was read: those have odd numbers.
fn came_later(sku: &str) -> bool {
    sku.strip_prefix("sku-").is_some_and(|nth| nth.parse::<u32>().unwrap() % 2 == 1)
}

#[tokio::test]
async fn a_page_that_can_not_be_is_refused_by_its_parameter() {
    let (_bench, client) = bench().await;
    for (query, field) in [
        ("/items?limit=0", "limit"),
        ("/items?limit=1001", "limit"),
        ("/items?limit=many", "limit"),
        ("/items?after=", "after"),
        ("/items?after=%00", "after"),
        ("/items?page=2", "page"),
        (&format!("/orders?customer_id={CUSTOMER}&limit=101"), "limit"),
        (&format!("/orders?customer_id={CUSTOMER}&after=7"), "after"),
    ] {
        let refused = client.get(query).await;
        let said = (refused.status, refused.body["field"].as_str());
        assert_eq!(said, (422, Some(field)), "{query}: {refused:?}");
    }
}
