//! Who may place, see and cancel an order, where the service knows its callers.

use testing::{ForOthers, RouteRequest, assert_access};

use super::*;

const WRITES: &[&str] = &["orders:write"];
const OTHER: Uuid = Uuid::from_u128(80);

#[tokio::test]
async fn every_route_admits_its_scopes_and_the_owner_of_the_order() {
    let (_fixture, client) = fixture_with_items().await;
    let order_id = post_order(&client).await;
    // The stream of an order that has ended does end.
    client.post(&format!("/orders/{order_id}/cancel"), None, json!({})).await;
    let document = chassis::openapi::document("order", &api::routes());
    let request =
        |route, uri: String, body, for_others| RouteRequest { route, uri, body, for_others };
    let of_order = |rest| format!("/orders/{order_id}{rest}");
    let not_found = ForOthers::Status(404);
    let requests = [
        request("POST /orders", "/orders".into(), order_request(), ForOthers::Status(403)),
        request(
            "GET /orders",
            format!("/orders?customer_id={CUSTOMER}"),
            Value::Null,
            ForOthers::EmptyList("orders"),
        ),
        request("GET /orders/{order_id}", of_order(""), Value::Null, not_found),
        request("GET /orders/{order_id}/history", of_order("/history"), Value::Null, not_found),
        request("GET /orders/{order_id}/events", of_order("/events"), Value::Null, not_found),
        request("POST /orders/{order_id}/cancel", of_order("/cancel"), json!({}), not_found),
        request("GET /items", "/items".into(), Value::Null, ForOthers::Same),
    ];
    assert_access(&document, &client, CUSTOMER, &requests).await;
}

#[tokio::test]
async fn the_order_of_another_customer_is_neither_placed_nor_cancelled() {
    let (fixture, client) = fixture_with_items().await;
    let (owner, other) = (CUSTOMER.to_string(), OTHER.to_string());
    let (owner, other) = (client.with_caller(&owner, WRITES), client.with_caller(&other, WRITES));
    let refused = other.post("/orders", None, order_request()).await;
    assert_eq!((refused.status, &refused.body["field"]), (403, &json!("customer_id")));
    assert_eq!(fixture.count_rows("orders").await, 0);
    let order_id = post_order(&owner).await;
    let cancel = format!("/orders/{order_id}/cancel");
    for key in [None, Some("a")] {
        let refused = other.post(&cancel, key, json!({})).await;
        assert_eq!((refused.status, &refused.body["type"]), (404, &json!("/problems/not-found")));
    }
    assert_eq!(client.get(&format!("/orders/{order_id}")).await.body["status"], "pending");
    assert_eq!(owner.post(&cancel, Some("a"), json!({})).await.body["status"], "cancelled");
    // The stored answer to the owner's key is the owner's alone.
    assert_eq!(other.post(&cancel, Some("a"), json!({})).await.status, 404);
}

#[tokio::test]
async fn two_callers_with_the_same_idempotency_key_have_an_order_each() {
    let (fixture, client) = fixture_with_items().await;
    let mut orders = Vec::new();
    for customer in [CUSTOMER, OTHER] {
        let subject = customer.to_string();
        let caller = client.with_caller(&subject, WRITES);
        let mut request = order_request();
        request["customer_id"] = json!(customer);
        let placed = caller.post("/orders", Some("a"), request.clone()).await;
        assert_eq!(placed.status, 201, "{placed:?}");
        assert_eq!(caller.post("/orders", Some("a"), request).await.body, placed.body);
        orders.push(placed.body["order_id"].clone());
    }
    assert_ne!(orders[0], orders[1]);
    let keys: Vec<String> = sqlx::query_scalar("select key from chassis.idempotency_keys")
        .fetch_all(&fixture.db)
        .await
        .unwrap();
    assert_eq!(keys.len(), 2);
    assert!(keys.iter().all(|key| key.len() == 64), "hashes, and no subject: {keys:?}");
}

#[tokio::test]
async fn one_caller_takes_no_more_than_an_eighth_of_the_places_of_those_who_wait() {
    let (_fixture, client) = fixture_with_items().await;
    let order_id = post_order(&client).await;
    let (path, owner) = (format!("/orders/{order_id}/events"), CUSTOMER.to_string());
    let owner = client.with_caller(&owner, &["orders:read"]);
    let support = client.with_caller("support", &["support:read"]);
    let mut streams = Vec::new();
    for _ in 0..512 / 8 {
        streams.push(owner.get_with_headers(&path, &[]).await);
    }
    assert!(streams.iter().all(|stream| stream.status() == 200));
    assert_eq!(owner.get(&path).await.status, 503);
    let waiting = [("prefer", "wait=1")];
    let waits = owner.get_with_headers(&format!("/orders/{order_id}"), &waiting).await;
    assert_eq!(waits.status(), 503);
    assert_eq!(support.get_with_headers(&path, &[]).await.status(), 200, "others have places");
    streams.pop();
    assert_eq!(owner.get_with_headers(&path, &[]).await.status(), 200, "it is free again");
}
