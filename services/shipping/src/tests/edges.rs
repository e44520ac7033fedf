//! The service on a real database: what is stored, published, shown and pending.

use testing::{ForOthers, RouteRequest, TestClient, TestService, assert_access};

use super::*;
use crate::{CancelParcel, LostParcel, NoNews, api};
use chassis::{Republish, Timer};

async fn fixture() -> (TestService<Shipments>, TestClient) {
    let fixture = TestService::new("shipping", sqlx::migrate!()).await;
    let api = api::router(fixture.db.clone(), fixture.commands.clone());
    (fixture, TestClient::of_api(api))
}

async fn confirm(fixture: &TestService<Shipments>, order_id: Uuid) {
    let event = confirmed(order_id, &[2, 1]);
    fixture.deliver(&[(Uuid::now_v7(), &event)], saga::ship).await.unwrap();
}

/// Answers the first booking of an order. Returns the ids of what was published.
async fn book(
    fixture: &TestService<Shipments>,
    order_id: Uuid,
    result: CallResult<BookedParcel>,
) -> Vec<Uuid> {
    let answer = answered(BookParcel { order_id, pieces: 3, nth: 1 }, result);
    fixture.answer(&[(Uuid::now_v7(), &answer)], saga::booked).await.unwrap()
}

async fn hear(fixture: &TestService<Shipments>, kind: &str, order_id: Uuid) -> Vec<Uuid> {
    let delivery = (Uuid::now_v7(), news(kind, order_id, PARCEL));
    fixture.receive(&[delivery], saga::hear).await.unwrap()
}

/// The names of the calls and tasks that are pending.
async fn pending(fixture: &TestService<Shipments>) -> Vec<String> {
    fixture.calls().await.into_iter().map(|(name, ..)| name).collect()
}

#[tokio::test]
async fn a_shipment_is_booked_collected_and_delivered_once() {
    let (fixture, client) = fixture().await;
    let event_id = Uuid::now_v7();
    for event_id in [event_id, event_id, Uuid::now_v7()] {
        let event = confirmed(ORDER, &[2, 1]);
        fixture.deliver(&[(event_id, &event)], saga::ship).await.unwrap();
    }
    assert_eq!(
        fixture.calls().await,
        [(
            "call/carrier.book".into(),
            ORDER.to_string(),
            json!({"order_id": ORDER, "pieces": 3, "nth": 1})
        )]
    );
    let (name, key, due_at) = fixture.timers().await.remove(0);
    assert_eq!((name.as_str(), key), (NoNews::NAME, ORDER.to_string()));
    assert_eq!(book(&fixture, ORDER, done(PARCEL)).await.len(), 1);
    assert!(fixture.timers().await[0].2 > due_at, "it is moved");
    let delivery = [(Uuid::now_v7(), news("parcel.collected", ORDER, PARCEL))];
    for _ in 0..2 {
        fixture.receive(&delivery, saga::hear).await.unwrap();
    }
    assert_eq!(hear(&fixture, "parcel.delivered", ORDER).await.len(), 1);
    assert!(hear(&fixture, "parcel.lost", ORDER).await.is_empty());
    let topics = fixture.outbox_entries().await.into_iter();
    let topics: Vec<_> = topics.map(|(topic, key, _)| (topic, key)).collect();
    let expected = ["shipments.booked", "shipments.delivered"];
    assert_eq!(topics, expected.map(|topic| (topic.to_string(), ORDER.to_string())));
    assert_eq!((fixture.timers().await, fixture.calls().await), (vec![], vec![]));

    let shown = client.get(&format!("/shipments/{ORDER}")).await.body;
    let of_shown = (&shown["state"], &shown["parcel_id"], &shown["reason"]);
    assert_eq!(of_shown, (&json!("delivered"), &json!(PARCEL), &Value::Null), "{shown}");
    let history = shown["history"].as_array().unwrap();
    let states: Vec<_> = history.iter().map(|entry| entry["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["booking", "booked", "collected", "delivered"]);
    assert_eq!(history[0]["cause_id"], json!(event_id));
    assert_eq!(client.get(&format!("/shipments/{}", Uuid::nil())).await.status, 404);
}

#[tokio::test]
async fn a_booking_without_an_answer_leads_to_an_inquiry_and_then_to_a_person() {
    let (fixture, client) = fixture().await;
    confirm(&fixture, ORDER).await;
    book(&fixture, ORDER, unknown()).await;
    let timer = NoNews { order_id: ORDER };
    let due = async || {
        fixture.fire(&[(Uuid::now_v7(), &timer)], saga::inquire).await.unwrap();
    };
    due().await;
    assert_eq!(pending(&fixture).await, ["call/carrier.book", "call/carrier.find"]);
    let inquiry = FindParcels { order_id: ORDER, bookings: 1, parcel_id: None };
    let answer = answered(inquiry, parcels(&[]));
    fixture.answer(&[(Uuid::now_v7(), &answer)], saga::found).await.unwrap();
    assert_eq!(pending(&fixture).await, ["call/carrier.book", "task/lost-parcel"]);
    assert_eq!(fixture.timers().await.len(), 1, "the carrier may tell as well");
    let task = LostParcel { order_id: ORDER, is_cancelling: false };
    let again = (Uuid::now_v7(), &task, "book_again");
    fixture.answer_task(again, saga::decided).await.unwrap();
    let booked: Vec<_> = fixture.calls().await.into_iter().map(|(.., call)| call).collect();
    assert_eq!(booked, [json!({"order_id": ORDER, "pieces": 3, "nth": 2})], "the first is gone");
    due().await;
    let found = parcels(&[(PARCEL, ParcelState::Booked)]);
    let inquiry = FindParcels { order_id: ORDER, bookings: 2, parcel_id: None };
    let answer = [(Uuid::now_v7(), &answered(inquiry, found))];
    assert_eq!(fixture.answer(&answer, saga::found).await.unwrap().len(), 1);
    assert!(fixture.answer(&answer, saga::found).await.unwrap().is_empty(), "it is heard once");
    assert_eq!(client.get(&format!("/shipments/{ORDER}")).await.body["state"], "booked");
    assert_eq!(pending(&fixture).await.len(), 0, "its booking is known from elsewhere");
}

#[tokio::test]
async fn a_shipment_is_cancelled_unless_the_carrier_refuses() {
    let (fixture, client) = fixture().await;
    let cancel = async |order_id: Uuid, key| {
        client.post(&format!("/shipments/{order_id}/cancel"), Some(key), json!({})).await
    };
    assert_eq!(cancel(ORDER, "a").await.status, 404);
    let second = Uuid::from_u128(9);
    for order_id in [ORDER, second] {
        confirm(&fixture, order_id).await;
        let early = cancel(order_id, "b").await;
        let problem = (early.status, &early.body["type"]);
        assert_eq!(problem, (409, &json!("/problems/shipment-not-booked")), "try later");
        book(&fixture, order_id, done(PARCEL)).await;
        for _ in 0..2 {
            let answer = cancel(order_id, "b").await;
            assert_eq!((answer.status, &answer.body["state"]), (200, &json!("cancelling")));
        }
    }
    assert_eq!(pending(&fixture).await, ["call/carrier.cancel"; 2]);
    for (order_id, result) in [(ORDER, refused()), (second, CallResult::Done(Value::Null))] {
        let answer = answered(CancelParcel { order_id }, result);
        fixture.answer(&[(Uuid::now_v7(), &answer)], saga::cancelled).await.unwrap();
    }
    let shown = client.get(&format!("/shipments/{ORDER}")).await.body;
    let last = shown["history"].as_array().unwrap().last().unwrap();
    assert_eq!((&shown["state"], &last["state"]), (&json!("booked"), &json!("booked")));
    assert_eq!(last["what"], "the carrier refuses to cancel: 422 it is collected");
    let shown = client.get(&format!("/shipments/{second}")).await.body;
    let state = (&shown["state"], &shown["reason"]);
    assert_eq!(state, (&json!("cancelled"), &json!("cancelled")));
    assert_eq!(fixture.published::<events::shipments::ShipmentFailed>().await.len(), 1);
    assert_eq!(cancel(second, "c").await.status, 200, "again");
    hear(&fixture, "parcel.collected", ORDER).await;
    let late = cancel(ORDER, "c").await;
    let problem = (late.status, &late.body["type"]);
    assert_eq!(problem, (409, &json!("/problems/shipment-under-way")));
}

#[tokio::test]
async fn what_was_published_is_republished_and_the_books_balance() {
    let (fixture, _client) = fixture().await;
    let orders = [1, 2, 3, 4].map(Uuid::from_u128);
    for order_id in orders {
        confirm(&fixture, order_id).await;
        book(&fixture, order_id, done(PARCEL)).await;
    }
    hear(&fixture, "parcel.delivered", orders[1]).await;
    hear(&fixture, "parcel.lost", orders[2]).await;
    let unknown = [(Uuid::now_v7(), news("parcel.lost", ORDER, PARCEL))];
    fixture.receive(&unknown, saga::hear).await.unwrap_err();
    let mut published = fixture.outbox_records().await;
    let (answer, again) = fixture.republished([Shipment::source()], json!({})).await;
    assert_eq!((answer.status, &answer.body["republished"]), (200, &json!(6)));
    published.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(again, published, "by order, and of each in the order in which it was published");

    let books = fixture.books(api::BOOKS).get("/books").await.body;
    let expected = json!({"booked": 2, "delivered": 1, "failed": 1});
    assert_eq!((&books["shipments"], &books["history"]), (&expected, &json!(10)), "{books}");
    let corruptions = [
        (
            "update shipments set state = 'collected' where order_id = '00000000-0000-0000-0000-000000000001'",
            "update shipments set state = 'booked' where order_id = '00000000-0000-0000-0000-000000000001'",
        ),
        (
            "update shipments set last_position = last_position + 1",
            "update shipments set last_position = last_position - 1",
        ),
    ];
    fixture.assert_books_detect(api::BOOKS, &corruptions).await;
    for statement in [
        "update shipments set reason = 'lost' where state = 'booked'",
        "update shipments set ended = null where state = 'delivered'",
        "update shipments set parcel_id = null where state = 'booked'",
    ] {
        assert_eq!(fixture.expect_sqlstate(statement).await, "23514", "{statement}");
    }
    fixture.assert_append_only(&["shipment_history"]).await;
}

#[tokio::test]
async fn every_route_admits_its_scopes_and_the_owner_of_the_order() {
    let (fixture, client) = fixture().await;
    confirm(&fixture, ORDER).await;
    book(&fixture, ORDER, done(PARCEL)).await;
    let document = chassis::openapi::document("shipping", &api::routes());
    let for_others = ForOthers::Status(404);
    let requests = [
        ("GET /shipments/{order_id}", format!("/shipments/{ORDER}"), Value::Null),
        ("POST /shipments/{order_id}/cancel", format!("/shipments/{ORDER}/cancel"), json!({})),
    ];
    let requests = requests.map(|(route, uri, body)| RouteRequest { route, uri, body, for_others });
    assert_access(&document, &client, CUSTOMER, &requests).await;
}

#[test]
fn the_committed_openapi_document_matches_the_code() {
    testing::compare_openapi("shipping", env!("CARGO_MANIFEST_DIR"), &api::routes());
}
