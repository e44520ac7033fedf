//! The rules of fraud, then its edges on a real database.

use chassis::{Command, HandlerContext, Republish, UnitOfWork};
use chrono::DateTime;
use events::orders::{CancelReason, OrderCancelled, OrderCreated, OrderLine};
use events::participants::{Fraud, Participant};
use serde_json::{Value, json};
use testing::{ForOthers, RouteRequest, TestClient, TestService, assert_access};
use uuid::Uuid;

use crate::response::{Response, Responses, Settle, State};
use crate::rule::{TOTAL_MAX_CENTS, UNDONE_MAX_CENTS};
use crate::saga::{self, Answer, NothingOwed, Undoing};
use crate::{api, discard};

const ORDER: Uuid = Uuid::from_u128(7);

fn context(nth: u128) -> HandlerContext {
    let (event_id, causation_id) =
        (Uuid::from_u128(nth << 64 | 1), Some(Uuid::from_u128(nth << 64)));
    HandlerContext { now: DateTime::from_timestamp(nth as i64, 0).unwrap(), event_id, causation_id }
}

fn created(order_id: Uuid, total_cents: i64) -> OrderCreated {
    OrderCreated {
        order_id,
        customer_id: Uuid::max(),
        lines: vec![OrderLine { sku: "pen".into(), quantity: 1, unit_price_cents: total_cents }],
        total_cents,
        currency: "EUR".into(),
        also_asks: vec![Fraud::SERVICE.into()],
        occurred_at: context(0).now,
    }
}

fn cancelled(order_id: Uuid) -> OrderCancelled {
    OrderCancelled { order_id, reason: CancelReason::Customer, occurred_at: context(0).now }
}

fn settle(rows: &mut Responses, context: HandlerContext) -> chassis::Decision<Settle> {
    Settle { order_id: ORDER }.decide(rows, context)
}

async fn fixture() -> (TestService<Responses>, TestClient) {
    let fixture = TestService::new("fraud", sqlx::migrate!()).await;
    let api = api::router(fixture.db.clone());
    (fixture, TestClient::of_api(api))
}

#[test]
fn an_order_gets_one_answer_and_a_yes_is_undone_once() {
    for (total_cents, answered, after) in
        [(UNDONE_MAX_CENTS, State::Cleared, State::Withdrawn), (TOTAL_MAX_CENTS + 1, State::Flagged, State::Flagged)]
    {
        let (mut rows, order) = (Responses::default(), created(ORDER, total_cents));
        let answer = saga::answer(&order, &mut rows, context(1)).unwrap();
        let response = rows.response(ORDER).unwrap().clone();
        assert_eq!(response.state, answered);
        assert_eq!(answer, Some(match answered {
            State::Cleared => Answer::Cleared(response.cleared()),
            _ => Answer::Flagged(response.flagged()),
        }));
        assert_eq!(saga::answer(&order, &mut rows, context(2)), Ok(None), "it is not answered twice");
        assert_eq!(rows.response(ORDER), Some(&response));

        let undone = saga::undo(&cancelled(ORDER), &mut rows, context(3)).unwrap();
        let response = rows.response(ORDER).unwrap().clone();
        assert_eq!(response.state, after);
        assert_eq!(undone, (after == State::Withdrawn).then(|| Undoing::Withdrawn(response.withdrawn())));
        assert_eq!(saga::undo(&cancelled(ORDER), &mut rows, context(4)), Ok(None));
        assert_eq!(settle(&mut rows, context(5)), Err(NothingOwed));
        assert_eq!(rows.response(ORDER), Some(&response));
    }
}

#[test]
fn what_cannot_be_undone_waits_for_an_operator_who_settles_it_once() {
    let (mut rows, order) = (Responses::default(), created(ORDER, UNDONE_MAX_CENTS + 1));
    saga::answer(&order, &mut rows, context(1)).unwrap();
    assert_eq!(settle(&mut rows, context(2)), Err(NothingOwed));
    let kept = saga::undo(&cancelled(ORDER), &mut rows, context(3)).unwrap();
    let response = rows.response(ORDER).unwrap().clone();
    assert_eq!(kept, Some(Undoing::Kept(response.kept(context(3).now))));
    assert_eq!(saga::undo(&cancelled(ORDER), &mut rows, context(4)), Ok(None));
    let settled = settle(&mut rows, context(5)).unwrap();
    assert_eq!((settled.output.state, settled.event), (State::Withdrawn, Some(settled.output.withdrawn())));
    assert_eq!(settle(&mut rows, context(6)).unwrap().event, None);
    assert_eq!(saga::undo(&cancelled(ORDER), &mut rows, context(7)), Ok(None));
    assert_eq!(rows.response(ORDER), Some(&settled.output));
}

#[test]
fn a_cancellation_that_overtakes_its_order_leaves_a_tombstone() {
    let mut rows = Responses::default();
    let undone = saga::undo(&cancelled(ORDER), &mut rows, context(1)).unwrap().unwrap();
    let Undoing::Withdrawn(undone) = undone else { panic!("{undone:?}") };
    assert_eq!((undone.order_id, undone.total_cents), (ORDER, None));
    assert_eq!(saga::answer(&created(ORDER, 1), &mut rows, context(2)), Ok(None));
    assert_eq!(rows.response(ORDER).unwrap().state, State::Void);
}

#[test]
fn an_order_that_does_not_ask_gets_no_answer_and_one_of_a_negative_total_is_unprocessable() {
    let mut rows = Responses::default();
    let order = OrderCreated { also_asks: Vec::new(), ..created(ORDER, 1) };
    assert_eq!(saga::answer(&order, &mut rows, context(1)), Ok(None));
    saga::answer(&created(ORDER, -1), &mut rows, context(1)).unwrap_err();
    assert_eq!(rows.response(ORDER), None);
}

#[test]
fn a_discard_says_what_is_lost() {
    let mut rows = Responses::default();
    let said = |impact: chassis::DiscardImpact| json!(impact)["consequence"].to_string();
    assert!(said(discard::order(&created(ORDER, 1), &rows)).contains("never answers"));
    assert!(said(discard::cancellation(&cancelled(ORDER), &rows)).contains("never undone"));
    saga::answer(&created(ORDER, TOTAL_MAX_CENTS + 1), &mut rows, context(1)).unwrap();
    assert!(said(discard::order(&created(ORDER, 1), &rows)).contains("Nothing is lost"));
    assert!(said(discard::cancellation(&cancelled(ORDER), &rows)).contains("Nothing is lost"));
}

#[tokio::test]
async fn responses_are_stored_once_readable_balanced_and_republished() {
    let (fixture, client) = fixture().await;
    let id = |nth: u128| Uuid::from_u128(nth);
    let large = UNDONE_MAX_CENTS + 1;
    for (nth, total_cents) in [(1, 5), (2, 5), (3, TOTAL_MAX_CENTS + 1), (5, large), (6, large)] {
        let (event_id, order) = (Uuid::now_v7(), created(id(nth), total_cents));
        for event_id in [event_id, event_id, Uuid::now_v7()] {
            fixture.deliver(&[(event_id, &order)], saga::answer).await.unwrap();
        }
    }
    for nth in [2, 3, 4, 5, 6] {
        fixture.deliver(&[(Uuid::now_v7(), &cancelled(id(nth)))], saga::undo).await.unwrap();
    }
    let admin = TestClient(api::operators_router(fixture.commands.clone()).into());
    for (nth, status) in [(1, 409), (4, 409), (6, 200), (6, 200), (9, 409)] {
        let settled = admin.post(&format!("/responses/{}/settle", id(nth)), None, json!({})).await;
        assert_eq!(settled.status, status, "{settled:?}");
    }
    for (nth, state) in
        [(1, "cleared"), (2, "withdrawn"), (3, "flagged"), (4, "void"), (5, "kept"), (6, "withdrawn")]
    {
        let shown = client.get(&format!("/responses/{}", id(nth))).await;
        assert_eq!((shown.status, &shown.body["state"]), (200, &json!(state)), "{shown:?}");
    }
    assert_eq!(client.get(&format!("/responses/{}", id(9))).await.status, 404);
    let none = Vec::<u8>::new();
    let books = json!({"cleared": 1, "flagged": 1, "kept": 1, "withdrawn": 2, "void": 1, "balanced": true, "written_off": none});
    assert_eq!(fixture.books(api::BOOKS).get("/books").await.body, books);
    let wrong = ("update fraud_responses set reason = 'total_too_large'", "update fraud_responses set reason = null where state <> 'flagged'");
    fixture.assert_books_detect(api::BOOKS, &[wrong]).await;

    let mut published = fixture.outbox_records().await;
    let (answer, again) = fixture.republished([Response::source()], json!({})).await;
    assert_eq!((answer.status, &answer.body["republished"]), (200, &json!(10)));
    published.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(again, published, "by order, and of each in the order in which it was published");
}

#[tokio::test]
async fn every_route_admits_its_scopes() {
    let (fixture, client) = fixture().await;
    fixture.deliver(&[(Uuid::now_v7(), &created(ORDER, 1))], saga::answer).await.unwrap();
    let document = chassis::openapi::document("fraud", &api::routes());
    let uri = format!("/responses/{ORDER}");
    let (route, body, for_others) = ("GET /responses/{order_id}", Value::Null, ForOthers::Same);
    assert_access(&document, &client, Uuid::max(), &[RouteRequest { route, uri, body, for_others }]).await;
}

#[tokio::test]
async fn the_rows_are_loaded_and_saved_by_the_statements_of_the_snapshot() {
    let (fixture, _) = fixture().await;
    fixture.deliver(&[(Uuid::now_v7(), &created(ORDER, 1))], saga::answer).await.unwrap();
    let keys = || <Responses as UnitOfWork>::Keys::from([ORDER, Uuid::max()]);
    let change = |rows: &mut Responses| {
        let cleared = rows.response(ORDER).unwrap().clone();
        rows.put_response(Response { order_id: Uuid::max(), ..cleared.clone() });
        rows.put_response(Response {
            state: State::Withdrawn,
            kept_event_id: Some(Uuid::max()),
            kept_at: Some(context(1).now),
            compensation_event_id: Some(Uuid::max()),
            updated_at: context(1).now,
            ..cleared
        });
    };
    let saved_rows = |rows: &Responses| [ORDER, Uuid::max()].map(|id| rows.response(id).cloned());
    fixture.compare_statements(env!("CARGO_MANIFEST_DIR"), keys, change, saved_rows).await;
    assert_eq!(fixture.count_rows("fraud_responses").await, 1, "nothing is committed");
}

#[test]
fn the_committed_openapi_document_matches_the_code() {
    testing::compare_openapi("fraud", env!("CARGO_MANIFEST_DIR"), &api::routes());
}
