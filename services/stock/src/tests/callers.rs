//! Who may change and see what, where the service knows its callers.

use testing::{ForOthers, RouteRequest, assert_access};

use super::*;

#[tokio::test]
async fn every_route_admits_its_scopes() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 10).await;
    let order = created(ORDER, &[("pen", 1)]);
    fixture.deliver(&[(Uuid::now_v7(), &order)], saga::reserve_stock).await.unwrap();
    let document = chassis::openapi::document("stock", &api::routes());
    let request = |route, uri: &str, body| RouteRequest {
        route,
        uri: uri.to_owned(),
        body,
        for_others: ForOthers::Same,
    };
    let item = json!({"name": "pen", "price_cents": 150});
    let requests = [
        request("GET /items", "/items", Value::Null),
        request("GET /items/{sku}", "/items/pen", Value::Null),
        request("PUT /items/{sku}", "/items/pen", item),
        request("POST /items/{sku}/deliveries", "/items/pen/deliveries", json!({"quantity": 1})),
        request("GET /reservations/{order_id}", &format!("/reservations/{ORDER}"), Value::Null),
    ];
    assert_access(&document, &client, Uuid::max(), &requests).await;
}
