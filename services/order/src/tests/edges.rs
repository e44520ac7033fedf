//! The edges on a real database: HTTP in, events in, events out.

use chassis::Loader;

use super::*;

#[tokio::test]
async fn an_order_is_placed_shown_and_published() {
    let (fixture, client) = fixture_with_items().await;
    let answer = client.post("/orders", None, order_request()).await;
    let order_id = answer.body["order_id"].as_str().unwrap().to_string();
    assert_eq!((answer.status, answer.location), (201, Some(format!("/orders/{order_id}"))));
    let created_at = answer.body["created_at"].clone();
    let lines = json!([{"sku": "pen", "quantity": 2, "unit_price_cents": 150},
                       {"sku": "ink", "quantity": 1, "unit_price_cents": 90}]);
    let order = json!({"order_id": order_id, "customer_id": CUSTOMER, "status": "pending", "reason": null,
                       "payment": "waiting", "stock": "waiting", "total_cents": 390, "currency": "EUR",
                       "lines": lines, "created_at": created_at, "ended_at": null});
    let order = with_further_legs(order);
    assert_eq!(answer.body, order);
    assert_eq!(client.get(&format!("/orders/{order_id}")).await.body, order);
    let mine = client.get(&format!("/orders?customer_id={CUSTOMER}")).await.body;
    assert_eq!(mine, json!({"orders": [order], "next": null}));
    let others = client.get(&format!("/orders?customer_id={ORDER}")).await.body;
    assert_eq!(others, json!({"orders": [], "next": null}));

    let outbox = fixture.outbox_entries().await;
    let created_event_id: Uuid = sqlx::query_scalar("select created_event_id from orders")
        .fetch_one(&fixture.db)
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
async fn an_unknown_order_is_not_found() {
    let (_fixture, client) = fixture().await;
    for path in [format!("/orders/{ORDER}"), format!("/orders/{ORDER}/history"), "/orders/7".into()]
    {
        let answer = client.get(&path).await;
        assert_eq!((answer.status, &answer.body["type"]), (404, &json!("/problems/not-found")));
    }
    assert_eq!(client.post(&format!("/orders/{ORDER}/cancel"), None, json!({})).await.status, 404);
    let unasked = client.get("/orders").await;
    assert_eq!((unasked.status, &unasked.body["field"]), (422, &json!("customer_id")));
}

#[tokio::test]
async fn a_value_over_a_limit_is_refused_by_its_field_and_not_stored() {
    let (fixture, client) = fixture_with_items().await;
    deliver(
        &fixture,
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
        (json!([{"sku": "pen", "quantity": null}]), "lines[0].quantity"),
        (json!([{"sku": "pen", "quantity": "1"}]), "lines[0].quantity"),
        (json!([{"sku": "pen", "quantity": 1.5}]), "lines[0].quantity"),
        (json!([line("", 1)]), "lines[0].sku"),
        (json!([line(&"x".repeat(65), 1)]), "lines[0].sku"),
        (json!([line("a\u{0}b", 1)]), "lines[0].sku"),
        (json!([line("pen ", 1)]), "lines[0].sku"),
        (json!([line("pen", 1), line("pe\u{200b}n", 1)]), "lines[1].sku"),
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
    for (request, field) in [
        (json!({"lines": [line("pen", 1)]}), "customer_id"),
        (json!({"customer_id": CUSTOMER}), "lines"),
        (json!({"customer_id": "me", "lines": [line("pen", 1)]}), "customer_id"),
        (
            json!({"customer_id": CUSTOMER, "lines": [line("pen", 1)], "total_cents": 1}),
            "total_cents",
        ),
    ] {
        let refused = client.post("/orders", Some("a"), request).await;
        assert_eq!(
            (refused.status, refused.body["field"].as_str()),
            (422, Some(field)),
            "{refused:?}"
        );
    }
    for table in ["orders", "history", "chassis.outbox", "chassis.idempotency_keys"] {
        assert_eq!(fixture.count_rows(table).await, 0, "{table}");
    }
    let answer = client.post("/orders", Some("a"), order_request()).await;
    assert_eq!(answer.status, 201, "refusals are not remembered");
}

#[tokio::test]
async fn the_largest_order_is_accepted() {
    let (fixture, client) = fixture().await;
    let skus: Vec<String> = (10..60).map(|nth| format!("{}{nth}", "ü".repeat(62))).collect();
    let items: Vec<StockItem> = skus.iter().map(|sku| item(sku, 1_000_000_000, "EUR", 1)).collect();
    deliver(&fixture, &items, saga::item_changed).await;
    let lines: Vec<Value> = skus.iter().map(|sku| json!({"sku": sku, "quantity": 1_000})).collect();
    let answer =
        client.post("/orders", None, json!({"customer_id": CUSTOMER, "lines": lines})).await;
    assert_eq!((answer.status, &answer.body["total_cents"]), (201, &json!(50_000_000_000_000_i64)));
    let size: i32 = sqlx::query_scalar("select octet_length(body) from chassis.outbox")
        .fetch_one(&fixture.db)
        .await
        .unwrap();
    assert!(size < 64 * 1024, "{size}");
}

#[tokio::test]
async fn an_order_sent_twice_with_a_key_is_placed_once() {
    let (fixture, client) = fixture_with_items().await;
    let first = client.post("/orders", Some("a"), order_request()).await;
    let again = client.post("/orders", Some("a"), order_request()).await;
    assert_eq!((again.status, &again.body, &again.location), (201, &first.body, &first.location));
    let other = json!({"customer_id": CUSTOMER, "lines": [{"sku": "pen", "quantity": 1}]});
    let other = client.post("/orders", Some("a"), other).await;
    assert_eq!(
        (other.status, &other.body["type"]),
        (422, &json!("/problems/idempotency-key-reused"))
    );
    let together = futures::future::join_all(
        (0..20).map(|_| client.post("/orders", Some("b"), order_request())),
    )
    .await;
    assert!(together.iter().all(|answer| answer.status == 201 && answer.body == together[0].body));
    assert_eq!(
        (fixture.count_rows("orders").await, fixture.count_rows("chassis.outbox").await),
        (2, 2)
    );
    post_order(&client).await;
    post_order(&client).await;
    assert_eq!(fixture.count_rows("orders").await, 4, "without a key each is an order");
}

#[tokio::test]
async fn a_customer_cancels_once_and_not_what_is_confirmed() {
    let (fixture, client) = fixture_with_items().await;
    let order_id = post_order(&client).await;
    let path = format!("/orders/{order_id}/cancel");
    let cancelled = client.post(&path, None, json!({})).await;
    assert_eq!((cancelled.status, &cancelled.body["status"]), (200, &json!("cancelled")));
    assert_eq!(cancelled.body["reason"], "customer");
    assert!(cancelled.body["ended_at"].is_string());
    let again = client.post(&path, Some("a"), json!({})).await;
    assert_eq!((again.status, &again.body), (200, &cancelled.body));
    let topics: Vec<_> =
        fixture.outbox_entries().await.into_iter().map(|(topic, ..)| topic).collect();
    assert_eq!(topics, ["orders.created", "orders.cancelled"]);

    let order_id = post_order(&client).await;
    assert!(deliver(&fixture, &[verified(order_id)], saga::answered).await.is_empty());
    let confirmed = deliver(&fixture, &[reserved(order_id)], saga::answered).await;
    let refused = client.post(&format!("/orders/{order_id}/cancel"), Some("a"), json!({})).await;
    assert_eq!((refused.status, &refused.body["type"]), (409, &json!("/problems/order-confirmed")));
    let order = client.get(&format!("/orders/{order_id}")).await.body;
    assert_eq!(
        (&order["status"], &order["payment"], &order["stock"]),
        (&json!("confirmed"), &json!("verified"), &json!("reserved"))
    );
    assert_eq!(
        fixture.outbox_entries().await[3],
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
        books(&fixture).await,
        json!({"orders": counts, "confirmed_cents": 390, "balanced": true, "written_off": []})
    );
    post_order(&client).await;
    let ways = [
        (
            "update orders set stock = 'waiting' where status = 'confirmed'",
            "update orders set stock = 'reserved' where status = 'confirmed'",
        ),
        (
            "update orders set payment = 'refunded' where status = 'pending'",
            "update orders set payment = 'waiting' where status = 'pending'",
        ),
    ];
    fixture.assert_books_detect(&BOOKS, &ways).await;
}

#[tokio::test]
async fn the_books_are_those_of_now_unless_the_request_accepts_older_ones() {
    let (fixture, client) = fixture_with_items().await;
    let books = fixture.books(&BOOKS);
    let read = async |accepted: &str| {
        let headers = [("cache-control", accepted)];
        let answer = books.get_with_headers("/books", &headers).await;
        assert_eq!(answer.headers()["content-type"], "application/json");
        assert_eq!(answer.headers()["age"], "0", "in seconds");
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice::<Value>(&body).unwrap()["orders"]["pending"].clone()
    };
    assert_eq!(read("max-age=60").await, 0, "there is none yet");
    post_order(&client).await;
    assert_eq!(
        (read("max-age=60").await, books.get("/books").await.body["orders"]["pending"].clone()),
        (json!(0), json!(1))
    );
    post_order(&client).await;
    assert_eq!((read("max-age=60").await, read("no-cache").await), (json!(1), json!(2)));
}

#[tokio::test]
async fn the_first_rejection_cancels_and_later_events_only_advance_their_leg() {
    let (fixture, client) = fixture_with_items().await;
    let order_id = post_order(&client).await;
    deliver(&fixture, &[rejected(order_id)], saga::answered).await;
    let shown = async || client.get(&format!("/orders/{order_id}")).await.body;
    let ended = shown().await;
    assert_eq!(
        (&ended["status"], &ended["reason"], &ended["payment"]),
        (&json!("cancelled"), &json!("stock_rejected"), &json!("waiting"))
    );
    assert!(deliver(&fixture, &[verified(order_id)], saga::answered).await.is_empty());
    deliver(&fixture, &[refunded(order_id, Some(TOTAL_CENTS))], saga::answered).await;
    let settled = shown().await;
    assert_eq!((&settled["payment"], &settled["stock"]), (&json!("refunded"), &json!("rejected")));
    assert_eq!((&settled["ended_at"], &settled["reason"]), (&ended["ended_at"], &ended["reason"]));
    assert_eq!(fixture.count_rows("chassis.outbox").await, 2);
}

#[tokio::test]
async fn an_event_pruned_from_the_inbox_changes_nothing_when_redelivered() {
    let (fixture, client) = fixture_with_items().await;
    let (order_id, event_id) = (post_order(&client).await, Uuid::now_v7());
    fixture.deliver(&[(event_id, &verified(order_id))], saga::answered).await.unwrap();
    let before = client.get(&format!("/orders/{order_id}/history")).await.body;
    let known = fixture.deliver(&[(event_id, &verified(order_id))], saga::answered).await.unwrap();
    sqlx::query("delete from chassis.inbox").execute(&fixture.db).await.unwrap();
    let forgotten =
        fixture.deliver(&[(event_id, &verified(order_id))], saga::answered).await.unwrap();
    assert!(known.is_empty() && forgotten.is_empty());
    assert_eq!(client.get(&format!("/orders/{order_id}/history")).await.body, before);
}

#[tokio::test]
async fn a_batch_of_responses_is_one_transaction() {
    let (fixture, client) = fixture_with_items().await;
    let (one, other) = (post_order(&client).await, post_order(&client).await);
    deliver(&fixture, &[verified(other), verified(one)], saga::answered).await;
    let confirmed = deliver(&fixture, &[reserved(one), reserved(other)], saga::answered).await;
    let ended: Vec<Option<Uuid>> =
        sqlx::query_scalar("select ended_event_id from orders order by order_id")
            .fetch_all(&fixture.db)
            .await
            .unwrap();
    assert_eq!(ended, confirmed.into_iter().map(Some).collect::<Vec<_>>());
    let events = [reserved(one), reserved(Uuid::now_v7())];
    let events: Vec<_> = events.iter().map(|event| (Uuid::now_v7(), event)).collect();
    let inbox = fixture.count_rows("chassis.inbox").await;
    fixture.deliver(&events, saga::answered).await.unwrap_err();
    assert_eq!(
        fixture.count_rows("chassis.inbox").await,
        inbox,
        "an impossible event takes its whole batch back"
    );
}

#[tokio::test]
async fn items_are_listed_as_stock_last_published_them() {
    let (fixture, client) = fixture_with_items().await;
    // In one batch: one is new, one is newer, one is older than what is known.
    let batch = [item("nib", 5, "EUR", 1), item("pen", 160, "EUR", 3), item("pen", 155, "EUR", 2)];
    deliver(&fixture, &batch, saga::item_changed).await;
    deliver(&fixture, &[item("pen", 1, "EUR", 2)], saga::item_changed).await;
    let item = |sku: &str, price_cents: i64, version: i64| {
        json!({"sku": sku, "name": format!("{sku} {version}"), "price_cents": price_cents,
               "currency": "EUR", "version": version})
    };
    let items = json!([item("ink", 90, 1), item("nib", 5, 1), item("pen", 160, 3)]);
    assert_eq!(client.get("/items").await.body, json!({"items": items, "next": null}));
}

#[tokio::test]
async fn a_version_written_concurrently_is_not_replaced_by_an_older_one() {
    use chassis::{Loads, UnitOfWork};
    let (fixture, _client) = fixture_with_items().await;
    let (older, mut keys) = (item("pen", 2, "EUR", 2), Default::default());
    Orders::keys(&older, &mut keys);
    let mut slow = fixture.db.begin().await.unwrap();
    let mut rows = Orders::load(&mut Loader::new(&mut slow), keys).await.unwrap();
    saga::item_changed(&older, &mut rows, context(1)).unwrap();
    deliver(&fixture, &[item("pen", 3, "EUR", 3)], saga::item_changed).await;
    let mut writes = chassis::WriteBatch::new(&mut slow);
    rows.save(&mut writes);
    writes.execute().await.unwrap();
    slow.commit().await.unwrap();
    let version: i64 = sqlx::query_scalar("select version from items where sku = 'pen'")
        .fetch_one(&fixture.db)
        .await
        .unwrap();
    assert_eq!(version, 3);
}

#[tokio::test]
async fn batches_that_lock_the_same_orders_in_reverse_do_not_deadlock() {
    let (fixture, client) = fixture_with_items().await;
    for _ in 0..5 {
        let mut ids = Vec::new();
        for _ in 0..20 {
            ids.push(post_order(&client).await);
        }
        let payments: Vec<_> = ids.iter().map(|id| verified(*id)).collect();
        let stock: Vec<_> = ids.iter().rev().map(|id| reserved(*id)).collect();
        let (payments, stock) = tokio::join!(
            deliver(&fixture, &payments, saga::answered),
            deliver(&fixture, &stock, saga::answered)
        );
        assert_eq!(payments.len() + stock.len(), 20, "each is confirmed once");
    }
    assert_eq!(books(&fixture).await["orders"]["confirmed"], 100);
}

#[test]
fn the_committed_openapi_document_matches_the_code() {
    testing::compare_openapi("order", env!("CARGO_MANIFEST_DIR"), &api::routes());
}

#[tokio::test]
async fn the_serving_role_cannot_rewrite_what_is_append_only() {
    let (fixture, _client) = fixture().await;
    fixture.assert_append_only(&["history"]).await;
}
