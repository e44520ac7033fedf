//! The rules of stock, by table and by property; then its edges on a real database.

use std::collections::BTreeMap;

use chassis::announce;
use chassis::event::At;
use chassis::testing::{self, Bench, Client};
use chrono::DateTime;
use events::orders::{CancelReason, OrderCancelled, OrderCreated, OrderLine};
use events::stock::{RejectReason, ReleasedLine, ReservedLine, StockItem, StockRejected};
use proptest::prelude::*;
use serde_json::{Value, json};
use sqlx::types::Json;
use uuid::Uuid;

use crate::api;
use crate::saga::{self, Refusal, Reserving};
use crate::stock::{Delivery, Item, Line, PutItem, Reservation, Shortfall, State, Warehouse};

fn at(nth: u128) -> At {
    let (event_id, cause) = (Uuid::from_u128(nth << 64 | 1), Some(Uuid::from_u128(nth << 64)));
    At { now: DateTime::from_timestamp(nth as i64, 0).unwrap(), event_id, cause }
}

fn created(order_id: Uuid, lines: &[(&str, i32)]) -> OrderCreated {
    let line = |(sku, quantity): &(&str, i32)| OrderLine {
        sku: sku.to_string(),
        quantity: *quantity,
        unit_price_cents: 150,
    };
    OrderCreated {
        order_id,
        customer_id: Uuid::max(),
        lines: lines.iter().map(line).collect(),
        total_cents: 150,
        currency: "EUR".into(),
        occurred_at: at(0).now,
    }
}

fn cancelled(order_id: Uuid) -> OrderCancelled {
    OrderCancelled { order_id, reason: CancelReason::Customer, occurred_at: at(0).now }
}

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
        changed_at: at(0).now,
    }
}

const ORDER: Uuid = Uuid::from_u128(7);

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
            answer_event_id: (state != State::Void).then(Uuid::max),
            undo_event_id: matches!(state, State::Released | State::Void).then(Uuid::max),
            created_at: at(0).now,
            updated_at: at(0).now,
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
    let Ok(Some(Reserving::Reserved(event))) = saga::reserve_stock(&order, &mut warehouse, at(1))
    else {
        panic!("there is enough")
    };
    let by_sku = [("ink", 1), ("pen", 3)];
    let lines = by_sku.map(|(sku, quantity)| ReservedLine { sku: sku.into(), quantity });
    assert_eq!((event.order_id, event.lines, event.occurred_at), (ORDER, lines.into(), at(1).now));
    assert_eq!(counts(&warehouse, "pen"), (5, 0, 5));
    assert_eq!(counts(&warehouse, "ink"), (3, 2, 1));
    let row = warehouse.reservation(ORDER).unwrap();
    assert_eq!((row.state, row.answer_event_id), (State::Reserved, Some(at(1).event_id)));
    let lines = by_sku.map(|(sku, quantity)| Line { sku: sku.into(), quantity });
    assert_eq!((row.lines.0.as_slice(), row.undo_event_id), (lines.as_slice(), None));
}

#[test]
fn an_order_with_one_line_too_many_gets_nothing_and_hears_which() {
    for (lines, reason, sku, requested, available) in [
        (vec![("ink", 1), ("pen", 4)], RejectReason::OutOfStock, "pen", 4, 3),
        (vec![("pen", 4), ("ink", 4)], RejectReason::OutOfStock, "ink", 4, 3),
        (vec![("ink", 1), ("nib", 1)], RejectReason::NoSuchItem, "nib", 1, 0),
    ] {
        let mut warehouse = warehouse(None);
        let before = rows(&warehouse).0;
        let answer = saga::reserve_stock(&created(ORDER, &lines), &mut warehouse, at(1)).unwrap();
        let (order_id, occurred_at, sku) = (ORDER, at(1).now, sku.to_string());
        let no = StockRejected { order_id, reason, sku, requested, available, occurred_at };
        assert_eq!(answer, Some(Reserving::Rejected(no)));
        assert_eq!(rows(&warehouse).0, before);
        let row = warehouse.reservation(ORDER).unwrap();
        assert_eq!((row.state, row.lines.len()), (State::Rejected, 0));
        assert_eq!((row.answer_event_id, row.undo_event_id), (Some(at(1).event_id), None));
        assert!(row.reason.as_ref().unwrap().contains(&format!("{available} available")));
    }
}

#[test]
fn an_order_that_was_answered_or_cancelled_gets_no_other_answer() {
    for state in STATES {
        let mut warehouse = warehouse(Some(state));
        let before = rows(&warehouse);
        let order = created(ORDER, &[("pen", 1)]);
        assert_eq!(saga::reserve_stock(&order, &mut warehouse, at(1)), Ok(None), "{state:?}");
        assert_eq!(rows(&warehouse), before, "{state:?}");
    }
}

#[test]
fn an_order_that_cannot_be_changes_nothing() {
    for lines in [
        vec![],
        vec![("pen", 0)],
        vec![("ink", 1), ("pen", -1)],
        vec![("pen", 1), ("ink", 1), ("pen", 1)],
    ] {
        let mut warehouse = warehouse(None);
        let before = rows(&warehouse);
        let answer = saga::reserve_stock(&created(ORDER, &lines), &mut warehouse, at(1));
        assert!(answer.is_err(), "{lines:?} {answer:?}");
        assert_eq!(rows(&warehouse), before, "{lines:?}");
    }
}

#[test]
fn a_cancelled_order_gives_back_what_it_held() {
    let mut warehouse = warehouse(Some(State::Reserved));
    let event = saga::release_stock(&cancelled(ORDER), &mut warehouse, at(1)).unwrap().unwrap();
    let lines = vec![ReleasedLine { sku: "pen".into(), quantity: 2 }];
    assert_eq!((event.order_id, event.lines, event.occurred_at), (ORDER, lines, at(1).now));
    assert_eq!(counts(&warehouse, "pen"), (5, 5, 0));
    let row = warehouse.reservation(ORDER).unwrap();
    assert_eq!((row.state, row.undo_event_id), (State::Released, Some(at(1).event_id)));
    assert_eq!((row.answer_event_id, row.lines.len()), (Some(Uuid::max()), 1));
    assert_eq!((row.created_at, row.updated_at), (at(0).now, at(1).now));
}

#[test]
fn a_cancellation_that_overtook_its_order_is_answered_with_nothing_and_remembered() {
    let mut warehouse = warehouse(None);
    let items = rows(&warehouse).0;
    let event = saga::release_stock(&cancelled(ORDER), &mut warehouse, at(1)).unwrap().unwrap();
    assert_eq!((event.order_id, event.lines.len()), (ORDER, 0));
    let row = warehouse.reservation(ORDER).unwrap();
    assert_eq!((row.state, row.answer_event_id), (State::Void, None));
    assert_eq!((row.undo_event_id, row.lines.len()), (Some(at(1).event_id), 0));
    let late = saga::reserve_stock(&created(ORDER, &[("pen", 1)]), &mut warehouse, at(2));
    assert_eq!(late, Ok(None));
    assert_eq!(rows(&warehouse).0, items);
}

#[test]
fn there_is_nothing_to_undo_after_a_no_or_twice() {
    for state in [State::Rejected, State::Released, State::Void] {
        let mut warehouse = warehouse(Some(state));
        let before = rows(&warehouse);
        assert_eq!(
            saga::release_stock(&cancelled(ORDER), &mut warehouse, at(1)),
            Ok(None),
            "{state:?}"
        );
        assert_eq!(rows(&warehouse), before, "{state:?}");
    }
}

#[test]
fn an_item_is_announced_when_it_is_made_or_changed_and_only_then() {
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
        let event = saga::put_item(&put, &mut warehouse, at(nth as u128));
        assert_eq!(event.as_ref().map(|event| event.version), version);
        let item = warehouse.item("pen").unwrap();
        assert_eq!(
            (&item.name, item.price_cents, &item.currency),
            (&put.name, put.price_cents, &put.currency)
        );
        if let Some(event) = event {
            assert_eq!(
                (event.name, event.price_cents, event.currency),
                (put.name, put.price_cents, put.currency)
            );
            assert_eq!(item.event_id, at(nth as u128).event_id);
        }
    }
}

#[test]
fn a_changed_item_keeps_its_counts() {
    let mut warehouse = warehouse(None);
    let put =
        PutItem { sku: "pen".into(), name: "Quill".into(), price_cents: 1, currency: "EUR".into() };
    saga::put_item(&put, &mut warehouse, at(1)).unwrap();
    assert_eq!(counts(&warehouse, "pen"), (5, 3, 2));
}

#[test]
fn a_refused_delivery_changes_nothing() {
    let most = 1_000_000_000_000_000;
    for (sku, quantity, answer) in [
        ("nib", 1, Err(Refusal::NoSuchItem)),
        ("pen", most - 4, Err(Refusal::TooMuch)),
        ("pen", i64::MAX, Err(Refusal::TooMuch)),
        ("pen", most - 5, Ok(())),
    ] {
        let mut warehouse = warehouse(None);
        let before = rows(&warehouse);
        let delivery = Delivery { delivery_id: ORDER, sku: sku.into(), quantity };
        assert_eq!(saga::take_in(&delivery, &mut warehouse, at(1)), answer);
        match answer {
            Ok(()) => assert_eq!(counts(&warehouse, "pen"), (most, most - 2, 2)),
            Err(_) => assert_eq!(rows(&warehouse), before),
        }
    }
}

/// What may happen to a warehouse.
#[derive(Clone, Debug)]
enum Happening {
    Created(usize),
    Cancelled(usize),
    Put(usize, i64),
    Delivered(usize, i64),
}

const SKUS: [&str; 3] = ["ink", "nib", "pen"];
const ORDERS: usize = 5;

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let happening = prop_oneof![
        6 => (0..ORDERS).prop_map(Happening::Created),
        4 => (0..ORDERS).prop_map(Happening::Cancelled),
        1 => (0..SKUS.len(), 0..3_i64).prop_map(|(nth, price)| Happening::Put(nth, price)),
        2 => (0..SKUS.len(), prop_oneof![Just(1), Just(2), Just(999_999_999_999_998)])
            .prop_map(|(nth, quantity)| Happening::Delivered(nth, quantity)),
    ];
    prop::collection::vec(happening, 1..80)
}

/// The lines of each order; some are of the kind that cannot be.
fn orders() -> impl Strategy<Value = Vec<Vec<(usize, i32)>>> {
    let line = (0..SKUS.len(), prop_oneof![9 => 1..4_i32, 1 => -1..1_i32]);
    prop::collection::vec(prop::collection::vec(line, 0..4), ORDERS)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Whatever comes, in whatever order and however often: nothing is lost or made, no order gets a
    /// second answer or a second undo, and what is refused changes nothing.
    #[test]
    fn items_are_conserved_and_orders_are_answered_once(orders in orders(), happenings in happenings()) {
        let mut warehouse = Warehouse::default();
        let mut delivered = BTreeMap::<&str, i64>::new();
        let (mut answers, mut undos) = (BTreeMap::new(), BTreeMap::new());
        let id = |nth: usize| Uuid::from_u128(nth as u128);
        let all = |warehouse: &Warehouse| {
            let items = SKUS.map(|sku| warehouse.item(sku).cloned());
            let reservations: Vec<_> = (0..ORDERS).map(|nth| warehouse.reservation(id(nth)).cloned()).collect();
            (items, reservations)
        };
        for (now, happening) in happenings.into_iter().enumerate() {
            let before = all(&warehouse);
            let at = at(now as u128 + 1);
            let nothing_may_change = match happening {
                Happening::Created(nth) => {
                    let lines: Vec<_> = orders[nth].iter().map(|(sku, quantity)| (SKUS[*sku], *quantity)).collect();
                    match saga::reserve_stock(&created(id(nth), &lines), &mut warehouse, at) {
                        Ok(Some(_)) => {
                            *answers.entry(nth).or_insert(0) += 1;
                            prop_assert_eq!(warehouse.reservation(id(nth)).unwrap().answer_event_id, Some(at.event_id));
                            false
                        }
                        Ok(None) | Err(_) => true,
                    }
                }
                Happening::Cancelled(nth) => {
                    match saga::release_stock(&cancelled(id(nth)), &mut warehouse, at).unwrap() {
                        Some(_) => {
                            *undos.entry(nth).or_insert(0) += 1;
                            prop_assert_eq!(warehouse.reservation(id(nth)).unwrap().undo_event_id, Some(at.event_id));
                            false
                        }
                        None => true,
                    }
                }
                Happening::Put(nth, price_cents) => {
                    let (sku, name, currency) = (SKUS[nth].into(), "Name".into(), "EUR".into());
                    saga::put_item(&PutItem { sku, name, price_cents, currency }, &mut warehouse, at).is_none()
                }
                Happening::Delivered(nth, quantity) => {
                    let delivery = Delivery { delivery_id: at.event_id, sku: SKUS[nth].into(), quantity };
                    match saga::take_in(&delivery, &mut warehouse, at) {
                        Ok(()) => {
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

async fn bench() -> (Bench<Warehouse>, Client) {
    let bench = Bench::new("stock", sqlx::migrate!()).await;
    let api = api::router(bench.db.clone(), bench.commands.clone(), "EUR".into());
    (bench, Client(api))
}

async fn books(bench: &Bench<Warehouse>) -> Value {
    Client(api::books(bench.db.clone())).get("/books").await.body
}

/// An item with so many of it there.
async fn stocked(client: &Client, sku: &str, quantity: i64) {
    client.put(&format!("/items/{sku}"), json!({"name": sku, "price_cents": 150})).await;
    let wish = json!({"quantity": quantity});
    assert_eq!(
        client.post(&format!("/items/{sku}/deliveries"), Some("first"), wish).await.status,
        201
    );
}

#[tokio::test]
async fn an_item_is_made_changed_and_shown() {
    let (bench, client) = bench().await;
    let made = client.put("/items/pen", json!({"name": "Pen", "price_cents": 150})).await;
    assert_eq!((made.status, made.location.as_deref()), (201, Some("/items/pen")));
    let pen = json!({"sku": "pen", "name": "Pen", "price_cents": 150, "currency": "EUR", "version": 1,
                     "delivered": 0, "available": 0, "reserved": 0});
    assert_eq!(made.body, pen);
    assert_eq!(client.get("/items/pen").await.body, pen);
    assert_eq!(client.get("/items").await.body, json!({"items": [pen], "next": null}));
    let same = client.put("/items/pen", json!({"name": "Pen", "price_cents": 150})).await;
    assert_eq!((same.status, &same.body), (200, &pen));
    let dearer = client.put("/items/pen", json!({"name": "Pen", "price_cents": 160})).await;
    assert_eq!((dearer.status, &dearer.body["version"]), (200, &json!(2)));
    let outbox = bench.outbox().await;
    let announced: Vec<_> =
        outbox.iter().map(|(topic, key, _)| (topic.as_str(), key.as_str())).collect();
    assert_eq!(announced, [("stock.items", "pen"), ("stock.items", "pen")]);
    let newest: Uuid =
        sqlx::query_scalar("select event_id from items").fetch_one(&bench.db).await.unwrap();
    assert_eq!(newest, outbox[1].2);
    assert_eq!(client.get("/items/nib").await.status, 404);
}

#[tokio::test]
async fn the_place_of_an_item_can_be_asked_whatever_its_name() {
    let (_bench, client) = bench().await;
    for place in ["/items/a%20b", "/items/a%2Fb", "/items/%C3%BC%3F"] {
        let made = client.put(place, json!({"name": "Pen", "price_cents": 150})).await;
        assert_eq!((made.status, made.location.as_deref()), (201, Some(place)));
        let wish = json!({"quantity": 1});
        let delivered = client.post(&format!("{place}/deliveries"), Some("a"), wish).await;
        assert_eq!((delivered.status, delivered.location.as_deref()), (201, Some(place)));
    }
}

#[tokio::test]
async fn what_is_over_a_limit_is_refused_by_its_field_and_not_stored() {
    let (bench, client) = bench().await;
    let long = "x".repeat(65);
    for (sku, wish, field) in [
        ("pen", json!({"name": "", "price_cents": 1}), "name"),
        ("pen", json!({"name": "x".repeat(201), "price_cents": 1}), "name"),
        ("pen", json!({"name": "a\u{0}b", "price_cents": 1}), "name"),
        ("pen", json!({"name": "Pen", "price_cents": -1}), "price_cents"),
        ("pen", json!({"name": "Pen", "price_cents": 1_000_000_001}), "price_cents"),
        ("pen", json!({"name": "Pen", "price_cents": 1.5}), "price_cents"),
        ("pen", json!({"name": "Pen"}), "price_cents"),
        ("pen", json!({"name": "Pen", "price_cents": 1, "available": 7}), "available"),
        (&long, json!({"name": "Pen", "price_cents": 1}), "sku"),
        ("a%00b", json!({"name": "Pen", "price_cents": 1}), "sku"),
    ] {
        let refused = client.put(&format!("/items/{sku}"), wish).await;
        assert_eq!(
            (refused.status, refused.body["field"].as_str()),
            (422, Some(field)),
            "{refused:?}"
        );
    }
    assert_eq!((bench.count("items").await, bench.count("outbox").await), (0, 0));
    let most = json!({"name": "ü".repeat(200), "price_cents": 1_000_000_000});
    assert_eq!(client.put(&format!("/items/{}", "x".repeat(64)), most).await.status, 201);

    stocked(&client, "pen", 1).await;
    for (quantity, field) in [
        (json!(0), "quantity"),
        (json!(-1), "quantity"),
        (json!(1_000_000_001), "quantity"),
        (json!("1"), "quantity"),
    ] {
        let refused =
            client.post("/items/pen/deliveries", Some("k"), json!({"quantity": quantity})).await;
        assert_eq!(
            (refused.status, refused.body["field"].as_str()),
            (422, Some(field)),
            "{refused:?}"
        );
    }
    let keyless = client.post("/items/pen/deliveries", None, json!({"quantity": 1})).await;
    assert_eq!(
        (keyless.status, keyless.body["type"].as_str()),
        (400, Some("/problems/idempotency-key-missing"))
    );
    let unknown = client.post("/items/nib/deliveries", Some("k"), json!({"quantity": 1})).await;
    assert_eq!(unknown.status, 404);
    assert_eq!((bench.count("deliveries").await, bench.count("idempotency_keys").await), (1, 1));
    let later = client.post("/items/pen/deliveries", Some("k"), json!({"quantity": 2})).await;
    assert_eq!(
        (later.status, &later.body["available"]),
        (201, &json!(3)),
        "a refused wish leaves no key"
    );
}

#[tokio::test]
async fn more_than_can_be_counted_does_not_come_in() {
    let (bench, client) = bench().await;
    stocked(&client, "pen", 1).await;
    sqlx::query("update items set delivered = 999999999999999, available = 999999999999999")
        .execute(&bench.db)
        .await
        .unwrap();
    let one = json!({"quantity": 1});
    assert_eq!(client.post("/items/pen/deliveries", Some("a"), one.clone()).await.status, 201);
    let refused = client.post("/items/pen/deliveries", Some("b"), one).await;
    assert_eq!((refused.status, &refused.body["field"]), (422, &json!("quantity")));
    assert_eq!(bench.count("deliveries").await, 2);
}

#[tokio::test]
async fn a_delivery_that_is_told_twice_comes_in_once() {
    let (bench, client) = bench().await;
    stocked(&client, "pen", 5).await;
    let again = client.post("/items/pen/deliveries", Some("first"), json!({"quantity": 5})).await;
    assert_eq!((again.status, &again.body["available"]), (201, &json!(5)));
    assert_eq!(again.location.as_deref(), Some("/items/pen"));
    let other = client.post("/items/pen/deliveries", Some("first"), json!({"quantity": 6})).await;
    assert_eq!(
        (other.status, &other.body["type"]),
        (422, &json!("/problems/idempotency-key-reused"))
    );
    stocked(&client, "ink", 1).await; // the same key at another place is another key
    assert_eq!(bench.count("deliveries").await, 2);
    let together = futures::future::join_all(
        (0..10).map(|_| client.post("/items/pen/deliveries", Some("b"), json!({"quantity": 1}))),
    )
    .await;
    assert!(
        together
            .iter()
            .all(|answer| (answer.status, &answer.body["available"]) == (201, &json!(6)))
    );
    assert_eq!(
        books(&bench).await,
        json!({"delivered": 7, "available": 7, "reserved": 0, "balanced": true, "written_off": []})
    );
}

#[tokio::test]
async fn an_order_comes_in_once_and_its_answer_goes_out_with_it() {
    let (bench, client) = bench().await;
    stocked(&client, "pen", 5).await;
    stocked(&client, "ink", 1).await;
    let event_id = Uuid::now_v7();
    let order = created(ORDER, &[("pen", 2), ("ink", 1)]);
    let published = bench.bring(&[(event_id, &order)], saga::reserve_stock).await.unwrap();
    assert!(bench.bring(&[(event_id, &order)], saga::reserve_stock).await.unwrap().is_empty());
    assert!(
        bench.bring(&[(Uuid::now_v7(), &order)], saga::reserve_stock).await.unwrap().is_empty()
    );
    let answer = (String::from("stock.reserved"), ORDER.to_string(), published[0]);
    assert_eq!(bench.outbox().await[2..], [answer]);
    let shown = client.get(&format!("/reservations/{ORDER}")).await.body;
    assert_eq!(shown["state"], "reserved");
    assert_eq!(
        shown["lines"],
        json!([{"sku": "ink", "quantity": 1}, {"sku": "pen", "quantity": 2}])
    );
    assert_eq!(
        books(&bench).await,
        json!({"delivered": 6, "available": 3, "reserved": 3, "balanced": true, "written_off": []})
    );

    let undone =
        bench.bring(&[(Uuid::now_v7(), &cancelled(ORDER))], saga::release_stock).await.unwrap();
    assert_eq!(
        bench.outbox().await[3],
        (String::from("stock.released"), ORDER.to_string(), undone[0])
    );
    let ids: (Option<Uuid>, Option<Uuid>) =
        sqlx::query_as("select answer_event_id, undo_event_id from reservations")
            .fetch_one(&bench.db)
            .await
            .unwrap();
    assert_eq!(ids, (Some(published[0]), Some(undone[0])));
    assert_eq!(client.get(&format!("/reservations/{ORDER}")).await.body["state"], "released");
    assert_eq!(
        books(&bench).await,
        json!({"delivered": 6, "available": 6, "reserved": 0, "balanced": true, "written_off": []})
    );
    assert_eq!(client.get(&format!("/reservations/{}", Uuid::nil())).await.status, 404);
    assert_eq!(client.get("/reservations/7").await.status, 404);
}

#[tokio::test]
async fn a_batch_updates_some_rows_and_inserts_others() {
    let (bench, client) = bench().await;
    stocked(&client, "pen", 5).await;
    let id = |nth: u128| Uuid::from_u128(nth);
    let first: Vec<_> =
        (1..4).map(|nth| created(id(nth), &[("pen", if nth == 3 { 9 } else { 1 })])).collect();
    let first: Vec<_> = first.iter().map(|order| (Uuid::now_v7(), order)).collect();
    assert_eq!(bench.bring(&first, saga::reserve_stock).await.unwrap().len(), 3);
    // One was reserved, one was refused, one was never heard of.
    let cancelled = [cancelled(id(9)), cancelled(id(3)), cancelled(id(2))];
    let cancelled: Vec<_> = cancelled.iter().map(|order| (Uuid::now_v7(), order)).collect();
    assert_eq!(bench.bring(&cancelled, saga::release_stock).await.unwrap().len(), 2);
    let states: Vec<(Uuid, String)> =
        sqlx::query_as("select order_id, state from reservations order by order_id")
            .fetch_all(&bench.db)
            .await
            .unwrap();
    let states: Vec<_> = states.iter().map(|(id, state)| (id.as_u128(), state.as_str())).collect();
    assert_eq!(states, [(1, "reserved"), (2, "released"), (3, "rejected"), (9, "void")]);
    assert_eq!(
        books(&bench).await,
        json!({"delivered": 5, "available": 4, "reserved": 1, "balanced": true, "written_off": []})
    );
}

#[tokio::test]
async fn an_impossible_order_leaves_nothing_behind() {
    let (bench, client) = bench().await;
    stocked(&client, "pen", 5).await;
    let (good, bad) = (created(id(), &[("pen", 1)]), created(id(), &[("pen", 1), ("pen", 1)]));
    let batch = [(Uuid::now_v7(), &good), (Uuid::now_v7(), &bad)];
    bench.bring(&batch, saga::reserve_stock).await.unwrap_err();
    assert_eq!((bench.count("reservations").await, bench.count("inbox").await), (0, 0));
    assert_eq!(bench.outbox().await.len(), 1);
}

fn id() -> Uuid {
    Uuid::now_v7()
}

#[tokio::test]
async fn batches_that_touch_the_same_rows_the_other_way_round_wait_and_never_in_a_circle() {
    let (bench, client) = bench().await;
    stocked(&client, "pen", 1_000).await;
    stocked(&client, "ink", 1_000).await;
    for _ in 0..5 {
        let there: Vec<_> = (0..40).map(|_| created(id(), &[("ink", 1), ("pen", 1)])).collect();
        let back: Vec<_> = (0..40).map(|_| created(id(), &[("pen", 1), ("ink", 1)])).collect();
        let forth: Vec<_> = there.iter().map(|order| (id(), order)).collect();
        let aft: Vec<_> = back.iter().rev().map(|order| (id(), order)).collect();
        let (forth, aft) = tokio::join!(
            bench.bring(&forth, saga::reserve_stock),
            bench.bring(&aft, saga::reserve_stock)
        );
        assert_eq!((forth.unwrap().len(), aft.unwrap().len()), (40, 40));
        let undone: Vec<_> =
            there.iter().chain(&back).map(|order| cancelled(order.order_id)).collect();
        let forth: Vec<_> = undone.iter().map(|order| (id(), order)).collect();
        let aft: Vec<_> = undone.iter().rev().map(|order| (id(), order)).collect();
        let (forth, aft) = tokio::join!(
            bench.bring(&forth, saga::release_stock),
            bench.bring(&aft, saga::release_stock)
        );
        assert_eq!(forth.unwrap().len() + aft.unwrap().len(), 80, "each is undone once");
    }
    let books = books(&bench).await;
    assert_eq!((&books["available"], &books["balanced"]), (&json!(2_000), &json!(true)));
}

fn sources() -> [announce::Source; 2] {
    [announce::of::<Item>(), announce::of::<Reservation>()]
}

#[tokio::test]
async fn what_was_published_is_announced_again_word_for_word() {
    let (bench, client) = bench().await;
    let id = |nth: u128| Uuid::from_u128(nth);
    stocked(&client, "pen", 5).await;
    stocked(&client, "ink", 1).await;
    let orders = [
        created(id(1), &[("pen", 2), ("ink", 1)]),
        created(id(2), &[("pen", 1)]),
        created(id(3), &[("pen", 9)]),
        created(id(4), &[("nib", 1)]),
    ];
    for order in &orders {
        bench.bring(&[(Uuid::now_v7(), order)], saga::reserve_stock).await.unwrap();
    }
    for order in [cancelled(id(2)), cancelled(id(3)), cancelled(id(9))] {
        bench.bring(&[(Uuid::now_v7(), &order)], saga::release_stock).await.unwrap();
    }
    let first = bench.said().await;
    client.put("/items/pen", json!({"name": "Pen", "price_cents": 160})).await;
    let mut said = bench.said().await;
    // Of state, the newest is all there is to say.
    said.retain(|event| *event != first[0]);
    let (answer, again) = bench.announced(sources(), json!({})).await;
    assert_eq!((answer.status, &answer.body["announced"]), (200, &json!(said.len())));
    assert_eq!((&answer.body["rows"], &answer.body["next"]), (&json!(7), &Value::Null));
    for key in said.iter().map(|(_, _, key, ..)| key) {
        let of_key = |events: &[chassis::testing::Said]| -> Vec<_> {
            events.iter().filter(|event| event.2 == *key).cloned().collect()
        };
        assert_eq!(of_key(&again), of_key(&said), "in the order in which it was said");
    }
    assert_eq!(again.len(), said.len());

    let (_, pen) = bench.announced(sources(), json!({"key": "pen"})).await;
    assert_eq!(pen, said[said.len() - 1..]);
    let (_, undone) = bench.announced(sources(), json!({"key": id(2)})).await;
    let topics: Vec<_> = undone.iter().map(|(_, topic, ..)| topic.as_str()).collect();
    assert_eq!(topics, ["stock.reserved", "stock.released"]);
    let (nothing, none) = bench.announced(sources(), json!({"key": "nib"})).await;
    assert_eq!((nothing.status, none.len()), (404, 0));
    let last = said.iter().map(|event| event.5).max().unwrap();
    let (_, newest) = bench.announced(sources(), json!({"since": last})).await;
    assert_eq!(newest, pen, "only what was decided at that time or later");
    for after in ["pen", "prices/pen"] {
        let (refused, none) = bench.announced(sources(), json!({"after": after})).await;
        assert_eq!((refused.status, none.len()), (422, 0));
    }
}

/// A topic of state keeps the last record of a key. While an item changes all the time, what is
/// announced again may repeat a version, and never step back behind one that went out before.
#[tokio::test]
async fn an_item_announced_while_it_changes_is_never_followed_by_what_it_was() {
    let (bench, client) = bench().await;
    let changing = async {
        for price in 1..=150 {
            let wish = json!({"name": "Pen", "price_cents": price});
            assert!(client.put("/items/pen", wish).await.status < 300);
        }
    };
    let announcing = async {
        for _ in 0..150 {
            bench.announced(sources(), json!({})).await;
        }
    };
    tokio::join!(changing, announcing);
    let topic = &events::stock::ITEMS;
    let versions: Vec<i64> = bench
        .said()
        .await
        .iter()
        .map(|said| topic.codec().decode::<StockItem>(topic.codec(), &said.4).unwrap().version)
        .collect();
    assert!(versions.len() > 200, "{}", versions.len());
    assert!(versions.is_sorted(), "{versions:?}");
}

#[tokio::test]
async fn a_page_is_followed_by_the_next_until_everything_is_announced() {
    let (bench, _client) = bench().await;
    let orders: Vec<_> =
        (1..=1_200).map(|nth| created(Uuid::from_u128(nth), &[("pen", 1)])).collect();
    let orders: Vec<_> = orders.iter().map(|order| (Uuid::now_v7(), order)).collect();
    bench.bring(&orders, saga::reserve_stock).await.unwrap();
    let (answer, again) = bench.announced(sources(), json!({})).await;
    assert_eq!((answer.body["announced"].as_u64(), again.len()), (Some(1_200), 1_200));
    let after = format!("reservations/{}", Uuid::from_u128(1_000));
    let (rest, again) = bench.announced(sources(), json!({"after": after})).await;
    assert_eq!((rest.body["rows"].as_u64(), again.len()), (Some(200), 200));
}

#[tokio::test]
async fn while_the_outbox_is_full_nothing_is_announced_and_the_answer_says_where_to_go_on() {
    let (bench, client) = bench().await;
    stocked(&client, "pen", 5).await;
    let fill = "insert into outbox (event_id, topic, key, schema_fingerprint, body, occurred_at)
                select gen_random_uuid(), 'stock.items', 'pen', '', '', now()
                from generate_series(1, 10001)";
    sqlx::query(fill).execute(&bench.db).await.unwrap();
    let (answer, again) = bench.announced(sources(), json!({})).await;
    assert_eq!((answer.status, &answer.body["announced"]), (200, &json!(0)));
    assert_eq!((again.len(), &answer.body["next"]), (0, &json!("items/")));
    sqlx::query("delete from outbox").execute(&bench.db).await.unwrap();
    let (_, again) = bench.announced(sources(), json!({"after": "items/"})).await;
    assert_eq!(again.len(), 1);
}

#[test]
fn to_discard_an_event_costs_what_it_would_have_moved_and_says_so() {
    let (order, cancel) = (created(ORDER, &[("pen", 2)]), cancelled(ORDER));
    for state in [
        None,
        Some(State::Reserved),
        Some(State::Rejected),
        Some(State::Released),
        Some(State::Void),
    ] {
        let warehouse = warehouse(state);
        let loss = saga::order_discarded(&order, &warehouse);
        assert_eq!(loss.offer.is_some(), state.is_none(), "{state:?}: {loss:?}");
        assert_eq!(loss.write_offs, []);
        let loss = saga::cancellation_discarded(&cancel, &warehouse);
        let write_offs: Vec<(i64, &str)> =
            loss.write_offs.iter().map(|w| (w.amount, w.unit.as_str())).collect();
        let due: &[(i64, &str)] = match state {
            Some(State::Reserved) => &[(2, "pen")],
            // Nobody knows yet which and how many it will be.
            None => &[(0, "items")],
            Some(_) => &[],
        };
        assert_eq!(write_offs, due, "{state:?}: {loss:?}");
    }
}

#[test]
fn the_committed_openapi_document_is_what_the_code_says() {
    testing::compare_openapi("stock", env!("CARGO_MANIFEST_DIR"), &api::routes());
}
