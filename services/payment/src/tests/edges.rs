//! The edges on a real database: HTTP in, events in, events out.

use super::*;
use crate::saga::DEPOSITED_MAX_CENTS;

#[tokio::test]
async fn a_deposit_sent_repeatedly_opens_an_account_once() {
    let (fixture, client) = fixture().await;
    let path = format!("/accounts/{CUSTOMER}/deposits");
    let opened = client.post(&path, Some("a"), json!({"amount_cents": 500})).await;
    let deposit = json!({"deposit_id": opened.body["deposit_id"], "customer_id": CUSTOMER,
                         "amount_cents": 500, "currency": "EUR"});
    assert_eq!((opened.status, &opened.body), (201, &deposit));
    assert_eq!(opened.location, Some(format!("/accounts/{CUSTOMER}")));
    post_deposit(&client, CUSTOMER, 70, "b").await;
    let again = client.post(&path, Some("a"), json!({"amount_cents": 500})).await;
    assert_eq!((again.status, &again.body), (201, &deposit), "the same answer");
    let other = client.post(&path, Some("a"), json!({"amount_cents": 501})).await;
    assert_eq!(
        (other.status, &other.body["type"]),
        (422, &json!("/problems/idempotency-key-reused"))
    );
    let together = (0..10).map(|_| post_deposit(&client, CUSTOMER, 1, "c"));
    futures::future::join_all(together).await;
    assert_eq!(client.get(&format!("/accounts/{CUSTOMER}")).await.body["balance_cents"], 571);
    assert_eq!(
        (fixture.count_rows("deposits").await, fixture.count_rows("chassis.outbox").await),
        (3, 0)
    );
    let sums = json!({"deposited_cents": 571, "balance_cents": 571, "taken_cents": 0, "balanced": true, "written_off": []});
    assert_eq!(books(&fixture).await, sums);
    assert_eq!(client.get(&format!("/accounts/{ORDER}")).await.status, 404);
    assert_eq!(client.get("/accounts/7").await.status, 404);
}

#[tokio::test]
async fn a_value_over_a_limit_is_refused_by_its_field_and_not_stored() {
    let (fixture, client) = fixture().await;
    let path = format!("/accounts/{CUSTOMER}/deposits");
    for (request, field) in [
        (json!({"amount_cents": 0}), "amount_cents"),
        (json!({"amount_cents": -1}), "amount_cents"),
        (json!({"amount_cents": DEPOSITED_MAX_CENTS + 1}), "amount_cents"),
        (json!({"amount_cents": 1e30}), "amount_cents"),
        (json!({"amount_cents": 0.5}), "amount_cents"),
        (json!({"amount_cents": "1"}), "amount_cents"),
        (json!({}), "amount_cents"),
        (json!({"amount_cents": 1, "currency": "CHF"}), "currency"),
    ] {
        let refused = client.post(&path, Some("a"), request).await;
        assert_eq!(
            (refused.status, refused.body["field"].as_str()),
            (422, Some(field)),
            "{refused:?}"
        );
    }
    let keyless = client.post(&path, None, json!({"amount_cents": 1})).await;
    assert_eq!(
        (keyless.status, &keyless.body["type"]),
        (400, &json!("/problems/idempotency-key-missing"))
    );
    assert_eq!(
        (
            fixture.count_rows("accounts").await,
            fixture.count_rows("chassis.idempotency_keys").await
        ),
        (0, 0)
    );

    post_deposit(&client, CUSTOMER, DEPOSITED_MAX_CENTS, "a").await;
    let refused = client.post(&path, Some("b"), json!({"amount_cents": 1})).await;
    assert_eq!((refused.status, &refused.body["field"]), (422, &json!("amount_cents")));
    assert_eq!(
        (
            fixture.count_rows("deposits").await,
            fixture.count_rows("chassis.idempotency_keys").await
        ),
        (1, 1)
    );
    assert_eq!(books(&fixture).await["balanced"], true);
}

#[tokio::test]
async fn the_books_show_sums_beyond_64_bits() {
    let (fixture, _client) = fixture().await;
    for fill in [
        "insert into deposits (deposit_id, customer_id, amount_cents, created_at)
         select gen_random_uuid(), gen_random_uuid(), 1000000000000000, now()
         from generate_series(1, 10000)",
        "insert into accounts (customer_id, currency, deposited_cents, balance_cents, taken_cents)
         select customer_id, 'EUR', amount_cents, amount_cents, 0 from deposits",
    ] {
        sqlx::query(fill).execute(&fixture.db).await.unwrap();
    }
    let totals = books(&fixture).await;
    assert_eq!(
        (&totals["balanced"], totals["deposited_cents"].as_f64()),
        (&json!(true), Some(1e19))
    );
}

#[tokio::test]
async fn books_that_differ_from_the_rows_are_not_balanced() {
    let (fixture, client) = fixture().await;
    post_deposit(&client, CUSTOMER, 500, "a").await;
    let order = created(ORDER, CUSTOMER, 300, "EUR");
    fixture.deliver(&[(Uuid::now_v7(), &order)], saga::verify_payment).await.unwrap();
    let owned: &str = format!(
        "with accounts as (update accounts set customer_id = '{CUSTOMER}'),
              deposits as (update deposits set customer_id = '{CUSTOMER}')
         update payments set customer_id = '{CUSTOMER}'"
    )
    .leak();
    let ways = [
        ("update deposits set amount_cents = 501", "update deposits set amount_cents = 500"),
        ("update payments set amount_cents = 600", "update payments set amount_cents = 300"),
        ("update payments set state = 'refunded'", "update payments set state = 'verified'"),
        // All sums are right, and another account has the money.
        ("update accounts set customer_id = order_id from payments", owned),
        ("update deposits set customer_id = order_id from payments", owned),
        ("update payments set customer_id = order_id", owned),
    ];
    fixture.assert_books_detect(api::BOOKS, &ways).await;
}

#[tokio::test]
async fn the_database_refuses_negative_balances() {
    let (fixture, client) = fixture().await;
    post_deposit(&client, CUSTOMER, 500, "a").await;
    for impossible in [
        "update accounts set balance_cents = -1, taken_cents = 501",
        "update accounts set balance_cents = 501, taken_cents = -1",
        "update accounts set balance_cents = 400",
        "update accounts set deposited_cents = 1000000000000001, balance_cents = 1000000000000001",
        "update deposits set amount_cents = 0",
    ] {
        assert_eq!(fixture.expect_sqlstate(impossible).await, "23514", "{impossible}");
    }
}

#[tokio::test]
async fn an_account_accepts_no_other_currency() {
    let (fixture, client) = fixture().await;
    post_deposit(&client, CUSTOMER, 5, "a").await;
    let moved =
        TestClient::of_api(api::router(fixture.db.clone(), fixture.commands.clone(), "CHF".into()));
    let path = format!("/accounts/{CUSTOMER}/deposits");
    let refused = moved.post(&path, Some("b"), json!({"amount_cents": 5})).await;
    assert_eq!(
        (refused.status, &refused.body["type"]),
        (409, &json!("/problems/currency-mismatch"))
    );
    assert_eq!(fixture.count_rows("deposits").await, 1);
}

#[tokio::test]
async fn an_order_is_handled_once_and_its_response_is_published_with_it() {
    let (fixture, client) = fixture().await;
    post_deposit(&client, CUSTOMER, 500, "a").await;
    let event_id = Uuid::now_v7();
    let order = created(ORDER, CUSTOMER, 300, "EUR");
    let published = fixture.deliver(&[(event_id, &order)], saga::verify_payment).await.unwrap();
    assert!(fixture.deliver(&[(event_id, &order)], saga::verify_payment).await.unwrap().is_empty());
    assert!(
        fixture
            .deliver(&[(Uuid::now_v7(), &order)], saga::verify_payment)
            .await
            .unwrap()
            .is_empty()
    );
    let answer = (String::from("payments.verified"), ORDER.to_string(), published[0]);
    assert_eq!(fixture.outbox_entries().await, [answer]);
    let shown = client.get(&format!("/payments/{ORDER}")).await.body;
    assert_eq!((&shown["state"], &shown["amount_cents"]), (&json!("verified"), &json!(300)));
    assert_eq!((&shown["customer_id"], &shown["currency"]), (&json!(CUSTOMER), &json!("EUR")));
    let sums = json!({"deposited_cents": 500, "balance_cents": 200, "taken_cents": 300, "balanced": true, "written_off": []});
    assert_eq!(books(&fixture).await, sums);

    let undone = fixture
        .deliver(&[(Uuid::now_v7(), &cancelled(ORDER))], saga::refund_payment)
        .await
        .unwrap();
    assert_eq!(
        fixture.outbox_entries().await[1],
        (String::from("payments.refunded"), ORDER.to_string(), undone[0])
    );
    let ids: (Option<Uuid>, Option<Uuid>) =
        sqlx::query_as("select response_event_id, compensation_event_id from payments")
            .fetch_one(&fixture.db)
            .await
            .unwrap();
    assert_eq!(ids, (Some(published[0]), Some(undone[0])));
    assert_eq!(client.get(&format!("/payments/{ORDER}")).await.body["state"], "refunded");
    let sums = json!({"deposited_cents": 500, "balance_cents": 500, "taken_cents": 0, "balanced": true, "written_off": []});
    assert_eq!(books(&fixture).await, sums);
    assert_eq!(client.get(&format!("/payments/{}", Uuid::nil())).await.status, 404);
}

#[tokio::test]
async fn a_batch_updates_some_rows_and_inserts_others() {
    let (fixture, client) = fixture().await;
    post_deposit(&client, CUSTOMER, 250, "a").await;
    let order_id = |nth: u128| Uuid::from_u128(nth);
    let first: Vec<_> = (1..4).map(|nth| created(order_id(nth), CUSTOMER, 100, "EUR")).collect();
    let first: Vec<_> = first.iter().map(|order| (Uuid::now_v7(), order)).collect();
    assert_eq!(fixture.deliver(&first, saga::verify_payment).await.unwrap().len(), 3);
    let cancelled = [cancelled(order_id(9)), cancelled(order_id(3)), cancelled(order_id(2))];
    let cancelled: Vec<_> = cancelled.iter().map(|order| (Uuid::now_v7(), order)).collect();
    assert_eq!(fixture.deliver(&cancelled, saga::refund_payment).await.unwrap().len(), 2);
    let states: Vec<(Uuid, String, Option<String>)> =
        sqlx::query_as("select order_id, state, reason from payments order by order_id")
            .fetch_all(&fixture.db)
            .await
            .unwrap();
    let states: Vec<_> = states
        .iter()
        .map(|(id, state, no)| (id.as_u128(), state.as_str(), no.as_deref()))
        .collect();
    let short = Some("insufficient_funds");
    assert_eq!(
        states,
        [(1, "verified", None), (2, "refunded", None), (3, "declined", short), (9, "void", None)]
    );
    let sums = json!({"deposited_cents": 250, "balance_cents": 150, "taken_cents": 100, "balanced": true, "written_off": []});
    assert_eq!(books(&fixture).await, sums);
}

#[tokio::test]
async fn an_unprocessable_order_leaves_nothing_behind() {
    let (fixture, client) = fixture().await;
    post_deposit(&client, CUSTOMER, 250, "a").await;
    let (good, bad) =
        (created(Uuid::now_v7(), CUSTOMER, 1, "EUR"), created(Uuid::now_v7(), CUSTOMER, -1, "EUR"));
    let batch = [(Uuid::now_v7(), &good), (Uuid::now_v7(), &bad)];
    fixture.deliver(&batch, saga::verify_payment).await.unwrap_err();
    assert_eq!(
        (
            fixture.count_rows("payments").await,
            fixture.count_rows("chassis.inbox").await,
            fixture.count_rows("chassis.outbox").await
        ),
        (0, 0, 0)
    );
}

#[tokio::test]
async fn batches_that_lock_the_same_rows_in_reverse_do_not_deadlock() {
    let (fixture, client) = fixture().await;
    let customers: Vec<Uuid> = (0..20).map(|_| Uuid::now_v7()).collect();
    for customer_id in &customers {
        post_deposit(&client, *customer_id, 1_000, "a").await;
    }
    let id = Uuid::now_v7;
    for _ in 0..5 {
        let there: Vec<_> =
            customers.iter().map(|customer| created(id(), *customer, 1, "EUR")).collect();
        let back: Vec<_> =
            customers.iter().rev().map(|customer| created(id(), *customer, 1, "EUR")).collect();
        let forth: Vec<_> = there.iter().map(|order| (id(), order)).collect();
        let aft: Vec<_> = back.iter().map(|order| (id(), order)).collect();
        let (forth, aft) = tokio::join!(
            fixture.deliver(&forth, saga::verify_payment),
            fixture.deliver(&aft, saga::verify_payment)
        );
        assert_eq!((forth.unwrap().len(), aft.unwrap().len()), (20, 20));
        let undone: Vec<_> =
            there.iter().chain(&back).map(|order| cancelled(order.order_id)).collect();
        let forth: Vec<_> = undone.iter().map(|order| (id(), order)).collect();
        let aft: Vec<_> = undone.iter().rev().map(|order| (id(), order)).collect();
        let (forth, aft) = tokio::join!(
            fixture.deliver(&forth, saga::refund_payment),
            fixture.deliver(&aft, saga::refund_payment)
        );
        assert_eq!(forth.unwrap().len() + aft.unwrap().len(), 40, "each is undone once");
    }
    let books = books(&fixture).await;
    assert_eq!((&books["balance_cents"], &books["balanced"]), (&json!(20_000), &json!(true)));
}

#[test]
fn the_committed_openapi_document_matches_the_code() {
    testing::compare_openapi("payment", env!("CARGO_MANIFEST_DIR"), &api::routes());
}

#[tokio::test]
async fn the_serving_role_cannot_rewrite_what_is_append_only() {
    let (fixture, _client) = fixture().await;
    fixture.assert_append_only(&["deposits"]).await;
}
