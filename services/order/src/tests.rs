//! The tests of the order service: its rules, then its edges on a real database. This file has what they share: an
//! order of two pens and an ink, and the answers of payment and stock to it.

mod rules;
mod participants;
mod history;
mod fold;
mod edges;
mod callers;
mod waiting;
mod paging;
mod deadline;
mod pending_orders;
mod republishing;
mod statements;

use chassis::{Caller, Command, Effects, Event, HandlerContext, HandlerResult, Outcome};
use std::time::Duration;

use chrono::DateTime;
use events::orders::{OrderCreated, OrderLine};
use events::participants::{ASKED_BY_EVERY_ORDER, participants};
use events::payments::{DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{
    RejectReason, ReleasedLine, ReservedLine, StockItem, StockRejected, StockReleased,
    StockReserved,
};
use serde_json::{Value, json};
use testing::{TestClient, TestService};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::books::BOOKS;
use crate::order::{Leg, LegState, LineRequest, Order, Orders, PlaceOrder, Reason, Status};
use crate::saga;
use crate::{api, discard};

const ORDER: Uuid = Uuid::from_u128(7);
const CUSTOMER: Uuid = Uuid::from_u128(8);
const TOTAL_CENTS: i64 = 2 * 150 + 90;

fn context(nth: u128) -> HandlerContext {
    let (event_id, causation_id) =
        (Uuid::from_u128(nth << 64 | 1), Some(Uuid::from_u128(nth << 64)));
    HandlerContext { now: DateTime::from_timestamp(nth as i64, 0).unwrap(), event_id, causation_id }
}

fn euros() -> String {
    "EUR".into()
}

/// Two pens and an ink.
fn order(order_id: Uuid, status: Status, payment: LegState, stock: LegState) -> Order {
    let line = |sku: &str, quantity, unit_price_cents| OrderLine {
        sku: sku.into(),
        quantity,
        unit_price_cents,
    };
    let created = OrderCreated {
        order_id,
        customer_id: CUSTOMER,
        lines: vec![line("pen", 2, 150), line("ink", 1, 90)],
        total_cents: TOTAL_CENTS,
        currency: euros(),
        also_asks: Vec::new(),
        occurred_at: context(0).now,
    };
    let ended = status != Status::Pending;
    Order {
        status,
        reason: (status == Status::Cancelled).then_some(Reason::Deadline),
        payment: Leg::new(payment),
        stock: Leg::new(stock),
        ended_at: ended.then_some(context(0).now),
        ended_event_id: ended.then(Uuid::max),
        ..Order::placed(&created, Uuid::max())
    }
}

/// The legs of the participants that no order here asks.
fn with_further_legs(mut order: Value) -> Value {
    for participant in participants().into_iter().skip(ASKED_BY_EVERY_ORDER) {
        order[participant.service] = Value::Null;
    }
    order
}

fn rows(order: Order) -> Orders {
    let mut rows = Orders::default();
    rows.put_order(order);
    rows
}

/// What payment and stock can answer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Response {
    Verified,
    Declined,
    Refunded,
    PaymentVoid,
    Reserved,
    Rejected,
    Released,
    StockVoid,
}

use Response::*;

const RESPONSES: [Response; 8] =
    [Verified, Declined, Refunded, PaymentVoid, Reserved, Rejected, Released, StockVoid];

fn verified(order_id: Uuid) -> PaymentVerified {
    PaymentVerified {
        order_id,
        amount_cents: TOTAL_CENTS,
        currency: euros(),
        occurred_at: context(1).now,
    }
}

fn declined(order_id: Uuid) -> PaymentDeclined {
    PaymentDeclined { order_id, reason: DeclineReason::NoAccount, occurred_at: context(1).now }
}

fn refunded(order_id: Uuid, amount_cents: Option<i64>) -> PaymentRefunded {
    let currency = amount_cents.map(|_| euros());
    PaymentRefunded { order_id, amount_cents, currency, occurred_at: context(1).now }
}

/// Sorted by SKU, as stock publishes it; the order has its lines the other way round.
fn reserved(order_id: Uuid) -> StockReserved {
    let line = |sku: &str, quantity| ReservedLine { sku: sku.into(), quantity };
    StockReserved {
        order_id,
        lines: vec![line("ink", 1), line("pen", 2)],
        occurred_at: context(1).now,
    }
}

fn rejected(order_id: Uuid) -> StockRejected {
    let (reason, sku) = (RejectReason::OutOfStock, "pen".into());
    StockRejected { order_id, reason, sku, requested: 2, available: 1, occurred_at: context(1).now }
}

fn released(order_id: Uuid, lines: &[(&str, i32)]) -> StockReleased {
    let line =
        |(sku, quantity): &(&str, i32)| ReleasedLine { sku: sku.to_string(), quantity: *quantity };
    StockReleased { order_id, lines: lines.iter().map(line).collect(), occurred_at: context(1).now }
}

/// The result of the handler: the topic that it publishes to, nothing, or why the event is unprocessable.
fn handle(
    response: Response,
    order_id: Uuid,
    rows: &mut Orders,
    context: HandlerContext,
) -> Result<Option<&'static str>, String> {
    fn topic(answer: HandlerResult<impl Outcome>) -> Result<Option<&'static str>, String> {
        let outcome = answer.map_err(|impossible| impossible.0)?;
        let mut events = Effects::of(outcome).with_ids(self::context(0));
        let event = events.next();
        assert!(events.next().is_none(), "one event at most");
        Ok(event.map(|(_, event)| event.topic.name))
    }
    let released_lines = [("ink", 1), ("pen", 2)];
    match response {
        Verified => topic(saga::answered(&verified(order_id), rows, context)),
        Declined => topic(saga::answered(&declined(order_id), rows, context)),
        Refunded => topic(saga::answered(&refunded(order_id, Some(TOTAL_CENTS)), rows, context)),
        PaymentVoid => topic(saga::answered(&refunded(order_id, None), rows, context)),
        Reserved => topic(saga::answered(&reserved(order_id), rows, context)),
        Rejected => topic(saga::answered(&rejected(order_id), rows, context)),
        Released => topic(saga::answered(&released(order_id, &released_lines), rows, context)),
        StockVoid => topic(saga::answered(&released(order_id, &[]), rows, context)),
    }
}

fn item(sku: &str, price_cents: i64, currency: &str, version: i64) -> StockItem {
    let (sku, name, currency) = (sku.to_string(), format!("{sku} {version}"), currency.to_string());
    StockItem { sku, name, price_cents, currency, version, occurred_at: context(0).now }
}

fn items() -> Orders {
    let mut rows = Orders::default();
    for item in [item("pen", 150, "EUR", 1), item("ink", 90, "EUR", 1), item("nib", 1, "CHF", 1)] {
        saga::item_changed(&item, &mut rows, context(0)).unwrap();
    }
    rows
}

fn place(lines: &[(&str, i32)]) -> PlaceOrder {
    let line =
        |(sku, quantity): &(&str, i32)| LineRequest { sku: sku.to_string(), quantity: *quantity };
    PlaceOrder {
        order_id: ORDER,
        customer_id: CUSTOMER,
        lines: lines.iter().map(line).collect(),
        also_asks: Vec::new(),
        deadline: None,
    }
}

/// Without a setting.
const NEW_ORDERS: api::NewOrders = api::NewOrders { also_asks: Vec::new(), deadline: None };

async fn fixture() -> (TestService<Orders>, TestClient) {
    let fixture = TestService::new("order", sqlx::migrate!()).await;
    let watch = fixture.change_feed(&CancellationToken::new());
    let api = api::router(fixture.db.clone(), fixture.commands.clone(), watch, NEW_ORDERS);
    (fixture, TestClient::of_api(api))
}

/// With the two items of [`order`] published.
async fn fixture_with_items() -> (TestService<Orders>, TestClient) {
    let (fixture, client) = fixture().await;
    let items = [item("pen", 150, "EUR", 1), item("ink", 90, "EUR", 1)];
    deliver(&fixture, &items, saga::item_changed).await;
    (fixture, client)
}

/// A confirmed order, and a pending one that is paid.
async fn fixture_with_orders() -> (TestService<Orders>, [Uuid; 2]) {
    let (fixture, client) = fixture_with_items().await;
    let (confirmed, pending) = (post_order(&client).await, post_order(&client).await);
    deliver(&fixture, &[verified(confirmed), verified(pending)], saga::answered).await;
    deliver(&fixture, &[reserved(confirmed)], saga::answered).await;
    (fixture, [confirmed, pending])
}

async fn deliver<E: Event, O: Outcome + 'static>(
    fixture: &TestService<Orders>,
    events: &[E],
    handler: fn(&E, &mut Orders, HandlerContext) -> HandlerResult<O>,
) -> Vec<Uuid>
where
    Orders: chassis::Loads<E>,
{
    let events: Vec<_> = events.iter().map(|event| (Uuid::now_v7(), event)).collect();
    fixture.deliver(&events, handler).await.unwrap()
}

fn order_request() -> Value {
    let lines = json!([{"sku": "pen", "quantity": 2}, {"sku": "ink", "quantity": 1}]);
    json!({"customer_id": CUSTOMER, "lines": lines})
}

async fn post_order(client: &TestClient) -> Uuid {
    let answer = client.post("/orders", None, order_request()).await;
    assert_eq!(answer.status, 201, "{answer:?}");
    serde_json::from_value(answer.body["order_id"].clone()).unwrap()
}

/// The books, without what a further participant could not undo: nothing here.
async fn books(fixture: &TestService<Orders>) -> Value {
    let mut books = fixture.books(&BOOKS).get("/books").await.body;
    let fields = books.as_object_mut().unwrap();
    assert!(fields.remove("owed").is_none_or(|owed| owed == 0));
    assert!(fields.remove("owed_orders").is_none_or(|orders| orders.is_null()));
    books
}
