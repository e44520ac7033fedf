//! Who may see and fill an account, where the service knows its callers.

use testing::{ForOthers, RouteRequest, assert_access};

use super::*;

#[tokio::test]
async fn every_route_admits_its_scopes_and_the_owner_of_the_account() {
    let (fixture, client) = fixture().await;
    post_deposit(&client, CUSTOMER, 1_000, "first").await;
    let order = created(ORDER, CUSTOMER, 150, "EUR");
    fixture.deliver(&[(Uuid::now_v7(), &order)], saga::verify_payment).await.unwrap();
    let document = chassis::openapi::document("payment", &api::routes());
    let request =
        |route, uri: String, body, for_others| RouteRequest { route, uri, body, for_others };
    let not_found = ForOthers::Status(404);
    let requests = [
        request(
            "GET /accounts/{customer_id}",
            format!("/accounts/{CUSTOMER}"),
            Value::Null,
            not_found,
        ),
        request("GET /payments/{order_id}", format!("/payments/{ORDER}"), Value::Null, not_found),
        request(
            "POST /accounts/{customer_id}/deposits",
            format!("/accounts/{CUSTOMER}/deposits"),
            json!({"amount_cents": 1}),
            ForOthers::Same,
        ),
    ];
    assert_access(&document, &client, CUSTOMER, &requests).await;
}

#[tokio::test]
async fn a_payment_whose_order_never_came_is_shown_to_support_alone() {
    let (fixture, client) = fixture().await;
    let cancelled = cancelled(ORDER);
    fixture.deliver(&[(Uuid::now_v7(), &cancelled)], saga::refund_payment).await.unwrap();
    let path = format!("/payments/{ORDER}");
    let customer = CUSTOMER.to_string();
    for (scope, status) in [("accounts:read", 404), ("support:read", 200)] {
        assert_eq!(client.with_caller(&customer, &[scope]).get(&path).await.status, status);
    }
}

#[tokio::test]
async fn two_providers_with_the_same_idempotency_key_make_a_deposit_each() {
    let (_fixture, client) = fixture().await;
    for provider in ["bank", "wallet", "bank"] {
        let provider = client.with_caller(provider, &["accounts:deposit"]);
        post_deposit(&provider, CUSTOMER, 100, "same").await;
    }
    let account = client.get(&format!("/accounts/{CUSTOMER}")).await.body;
    assert_eq!(account["balance_cents"], 200);
}

/// The same answer for all: a repeat gets the stored one, whatever its token may read by then.
#[tokio::test]
async fn a_deposit_and_its_repeat_tell_nothing_of_the_account() {
    let (_fixture, client) = fixture().await;
    post_deposit(&client, CUSTOMER, 1_000, "earlier").await;
    let path = format!("/accounts/{CUSTOMER}/deposits");
    for scopes in [&["accounts:deposit", "support:read"][..], &["accounts:deposit"]] {
        let provider = client.with_caller("bank", scopes);
        let answer = provider.post(&path, Some("one"), json!({"amount_cents": 1})).await;
        let deposit = json!({"deposit_id": answer.body["deposit_id"], "customer_id": CUSTOMER,
                             "amount_cents": 1, "currency": "EUR"});
        assert_eq!((answer.status, answer.body), (201, deposit));
    }
}
