//! The edges on a real database: HTTP in, events in, events out.

use super::*;

#[tokio::test]
async fn an_item_is_created_changed_and_shown() {
    let (fixture, client) = fixture().await;
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
    let outbox = fixture.outbox_entries().await;
    let announced: Vec<_> =
        outbox.iter().map(|(topic, key, _)| (topic.as_str(), key.as_str())).collect();
    assert_eq!(announced, [("stock.items", "pen"), ("stock.items", "pen")]);
    let newest: Uuid =
        sqlx::query_scalar("select event_id from items").fetch_one(&fixture.db).await.unwrap();
    assert_eq!(newest, outbox[1].2);
    assert_eq!(client.get("/items/nib").await.status, 404);
}

#[tokio::test]
async fn the_location_of_an_item_resolves_whatever_its_sku() {
    let (_fixture, client) = fixture().await;
    for path in ["/items/a%20b", "/items/a%2Fb", "/items/%C3%BC%3F"] {
        let made = client.put(path, json!({"name": "Pen", "price_cents": 150})).await;
        assert_eq!((made.status, made.location.as_deref()), (201, Some(path)));
        let request = json!({"quantity": 1});
        let delivered = client.post(&format!("{path}/deliveries"), Some("a"), request).await;
        assert_eq!((delivered.status, delivered.location.as_deref()), (201, Some(path)));
    }
}

#[tokio::test]
async fn a_value_over_a_limit_is_refused_by_its_field_and_not_stored() {
    let (fixture, client) = fixture().await;
    let long = "x".repeat(65);
    for (sku, request, field) in [
        ("pen", json!({"name": "", "price_cents": 1}), "name"),
        ("pen", json!({"name": "x".repeat(201), "price_cents": 1}), "name"),
        ("pen", json!({"name": "a\u{0}b", "price_cents": 1}), "name"),
        ("pen", json!({"name": "Pen", "price_cents": -1}), "price_cents"),
        ("pen", json!({"name": "Pen", "price_cents": 1_000_000_001}), "price_cents"),
        ("pen", json!({"name": "Pen", "price_cents": 1.5}), "price_cents"),
        ("pen", json!({"name": "Pen"}), "price_cents"),
        ("pen", json!({"name": "Pen", "price_cents": "1"}), "price_cents"),
        ("pen", json!({"name": "Pen", "price_cents": 1, "available": 7}), "available"),
        (&long, json!({"name": "Pen", "price_cents": 1}), "sku"),
        ("a%00b", json!({"name": "Pen", "price_cents": 1}), "sku"),
        ("..", json!({"name": "Pen", "price_cents": 1}), "sku"),
    ] {
        let refused = client.put(&format!("/items/{sku}"), request).await;
        assert_eq!(
            (refused.status, refused.body["field"].as_str()),
            (422, Some(field)),
            "{refused:?}"
        );
    }
    assert_eq!(
        (fixture.count_rows("items").await, fixture.count_rows("chassis.outbox").await),
        (0, 0)
    );
    let most = json!({"name": "ü".repeat(200), "price_cents": 1_000_000_000});
    assert_eq!(client.put(&format!("/items/{}", "x".repeat(64)), most).await.status, 201);

    add_stock(&client, "pen", 1).await;
    for (quantity, field) in [
        (json!(0), "quantity"),
        (json!(-1), "quantity"),
        (json!(1_000_000_001), "quantity"),
        (json!("1"), "quantity"),
        (json!(1e30), "quantity"),
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
    // One of the delivery, and one of each of the two items that were created.
    assert_eq!(
        (
            fixture.count_rows("deliveries").await,
            fixture.count_rows("chassis.idempotency_keys").await
        ),
        (1, 3)
    );
    let later = client.post("/items/pen/deliveries", Some("k"), json!({"quantity": 2})).await;
    assert_eq!(
        (later.status, &later.body["available"]),
        (201, &json!(3)),
        "a refused request leaves no key"
    );
}

#[tokio::test]
async fn a_delivery_beyond_the_limit_is_refused() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 1).await;
    sqlx::query("update items set delivered = 999999999999999, available = 999999999999999")
        .execute(&fixture.db)
        .await
        .unwrap();
    let one = json!({"quantity": 1});
    assert_eq!(client.post("/items/pen/deliveries", Some("a"), one.clone()).await.status, 201);
    let refused = client.post("/items/pen/deliveries", Some("b"), one).await;
    assert_eq!((refused.status, &refused.body["field"]), (422, &json!("quantity")));
    assert_eq!(fixture.count_rows("deliveries").await, 2);
}

#[tokio::test]
async fn a_delivery_sent_twice_is_received_once() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 5).await;
    let again = client.post("/items/pen/deliveries", Some("first"), json!({"quantity": 5})).await;
    assert_eq!((again.status, &again.body["available"]), (201, &json!(5)));
    assert_eq!(again.location.as_deref(), Some("/items/pen"));
    let other = client.post("/items/pen/deliveries", Some("first"), json!({"quantity": 6})).await;
    assert_eq!(
        (other.status, &other.body["type"]),
        (422, &json!("/problems/idempotency-key-reused"))
    );
    add_stock(&client, "ink", 1).await; // the same key at another path is another key
    assert_eq!(fixture.count_rows("deliveries").await, 2);
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
        books(&fixture).await,
        json!({"delivered": 7, "available": 7, "reserved": 0, "balanced": true, "written_off": []})
    );
}

#[tokio::test]
async fn an_order_is_handled_once_and_its_response_is_published_with_it() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 5).await;
    add_stock(&client, "ink", 1).await;
    let event_id = Uuid::now_v7();
    let order = created(ORDER, &[("pen", 2), ("ink", 1)]);
    let published = fixture.deliver(&[(event_id, &order)], saga::reserve_stock).await.unwrap();
    assert!(fixture.deliver(&[(event_id, &order)], saga::reserve_stock).await.unwrap().is_empty());
    assert!(
        fixture.deliver(&[(Uuid::now_v7(), &order)], saga::reserve_stock).await.unwrap().is_empty()
    );
    let answer = (String::from("stock.reserved"), ORDER.to_string(), published[0]);
    assert_eq!(fixture.outbox_entries().await[2..], [answer]);
    let shown = client.get(&format!("/reservations/{ORDER}")).await.body;
    assert_eq!(shown["state"], "reserved");
    assert_eq!(
        shown["lines"],
        json!([{"sku": "ink", "quantity": 1}, {"sku": "pen", "quantity": 2}])
    );
    assert_eq!(
        books(&fixture).await,
        json!({"delivered": 6, "available": 3, "reserved": 3, "balanced": true, "written_off": []})
    );

    let undone =
        fixture.deliver(&[(Uuid::now_v7(), &cancelled(ORDER))], saga::release_stock).await.unwrap();
    assert_eq!(
        fixture.outbox_entries().await[3],
        (String::from("stock.released"), ORDER.to_string(), undone[0])
    );
    let ids: (Option<Uuid>, Option<Uuid>) =
        sqlx::query_as("select response_event_id, compensation_event_id from reservations")
            .fetch_one(&fixture.db)
            .await
            .unwrap();
    assert_eq!(ids, (Some(published[0]), Some(undone[0])));
    assert_eq!(client.get(&format!("/reservations/{ORDER}")).await.body["state"], "released");
    assert_eq!(
        books(&fixture).await,
        json!({"delivered": 6, "available": 6, "reserved": 0, "balanced": true, "written_off": []})
    );
    assert_eq!(client.get(&format!("/reservations/{}", Uuid::nil())).await.status, 404);
    assert_eq!(client.get("/reservations/7").await.status, 404);
}

#[tokio::test]
async fn books_that_differ_from_the_rows_are_not_balanced() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 5).await;
    let order = created(ORDER, &[("pen", 2)]);
    fixture.deliver(&[(Uuid::now_v7(), &order)], saga::reserve_stock).await.unwrap();
    let ways = [
        ("update deliveries set quantity = 6", "update deliveries set quantity = 5"),
        (
            r#"update reservations set lines = '[{"sku": "pen", "quantity": 4}]'"#,
            r#"update reservations set lines = '[{"sku": "pen", "quantity": 2}]'"#,
        ),
        (
            "update reservations set state = 'released'",
            "update reservations set state = 'reserved'",
        ),
        // All sums are right, and another item has the units.
        ("update items set sku = 'cap'", "update items set sku = 'pen'"),
        ("update deliveries set sku = 'cap'", "update deliveries set sku = 'pen'"),
        (
            r#"update reservations set lines = '[{"sku": "cap", "quantity": 2}]'"#,
            r#"update reservations set lines = '[{"sku": "pen", "quantity": 2}]'"#,
        ),
    ];
    fixture.assert_books_detect(api::BOOKS, &ways).await;
}

#[tokio::test]
async fn the_database_refuses_negative_stock() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 5).await;
    for impossible in [
        "update items set available = -1, reserved = 6",
        "update items set available = 6, reserved = -1",
        "update items set available = 4",
        "update deliveries set quantity = 0",
    ] {
        assert_eq!(fixture.expect_sqlstate(impossible).await, "23514", "{impossible}");
    }
}

#[tokio::test]
async fn a_batch_updates_some_rows_and_inserts_others() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 5).await;
    let id = |nth: u128| Uuid::from_u128(nth);
    let first: Vec<_> =
        (1..4).map(|nth| created(id(nth), &[("pen", if nth == 3 { 9 } else { 1 })])).collect();
    let first: Vec<_> = first.iter().map(|order| (Uuid::now_v7(), order)).collect();
    assert_eq!(fixture.deliver(&first, saga::reserve_stock).await.unwrap().len(), 3);
    // One was reserved, one was rejected, one never arrived.
    let cancelled = [cancelled(id(9)), cancelled(id(3)), cancelled(id(2))];
    let cancelled: Vec<_> = cancelled.iter().map(|order| (Uuid::now_v7(), order)).collect();
    assert_eq!(fixture.deliver(&cancelled, saga::release_stock).await.unwrap().len(), 2);
    let states: Vec<(Uuid, String)> =
        sqlx::query_as("select order_id, state from reservations order by order_id")
            .fetch_all(&fixture.db)
            .await
            .unwrap();
    let states: Vec<_> = states.iter().map(|(id, state)| (id.as_u128(), state.as_str())).collect();
    assert_eq!(states, [(1, "reserved"), (2, "released"), (3, "rejected"), (9, "void")]);
    assert_eq!(
        books(&fixture).await,
        json!({"delivered": 5, "available": 4, "reserved": 1, "balanced": true, "written_off": []})
    );
}

#[tokio::test]
async fn an_unprocessable_order_leaves_nothing_behind() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 5).await;
    let (good, bad) = (created(id(), &[("pen", 1)]), created(id(), &[("pen", 1), ("pen", 1)]));
    let batch = [(Uuid::now_v7(), &good), (Uuid::now_v7(), &bad)];
    fixture.deliver(&batch, saga::reserve_stock).await.unwrap_err();
    assert_eq!(
        (fixture.count_rows("reservations").await, fixture.count_rows("chassis.inbox").await),
        (0, 0)
    );
    assert_eq!(fixture.outbox_entries().await.len(), 1);
}

fn id() -> Uuid {
    Uuid::now_v7()
}

#[tokio::test]
async fn batches_that_lock_the_same_rows_in_reverse_do_not_deadlock() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 1_000).await;
    add_stock(&client, "ink", 1_000).await;
    for _ in 0..5 {
        let there: Vec<_> = (0..40).map(|_| created(id(), &[("ink", 1), ("pen", 1)])).collect();
        let back: Vec<_> = (0..40).map(|_| created(id(), &[("pen", 1), ("ink", 1)])).collect();
        let forth: Vec<_> = there.iter().map(|order| (id(), order)).collect();
        let aft: Vec<_> = back.iter().rev().map(|order| (id(), order)).collect();
        let (forth, aft) = tokio::join!(
            fixture.deliver(&forth, saga::reserve_stock),
            fixture.deliver(&aft, saga::reserve_stock)
        );
        assert_eq!((forth.unwrap().len(), aft.unwrap().len()), (40, 40));
        let undone: Vec<_> =
            there.iter().chain(&back).map(|order| cancelled(order.order_id)).collect();
        let forth: Vec<_> = undone.iter().map(|order| (id(), order)).collect();
        let aft: Vec<_> = undone.iter().rev().map(|order| (id(), order)).collect();
        let (forth, aft) = tokio::join!(
            fixture.deliver(&forth, saga::release_stock),
            fixture.deliver(&aft, saga::release_stock)
        );
        assert_eq!(forth.unwrap().len() + aft.unwrap().len(), 80, "each is undone once");
    }
    let books = books(&fixture).await;
    assert_eq!((&books["available"], &books["balanced"]), (&json!(2_000), &json!(true)));
}

#[tokio::test]
async fn a_sku_that_looks_like_another_is_refused_by_every_route() {
    let (fixture, client) = fixture().await;
    for sku in ["%20pen", "pen%20", "pen%C2%A0", "pe%E2%80%8Bn", "o%CC%88l", "%EF%BD%90en"] {
        let path = format!("/items/{sku}");
        let made = client.put(&path, json!({"name": "Pen", "price_cents": 150})).await;
        let deliveries = format!("{path}/deliveries");
        let delivered = client.post(&deliveries, Some("a"), json!({"quantity": 1})).await;
        for refused in [made, delivered, client.get(&path).await] {
            assert_eq!((refused.status, &refused.body["field"]), (422, &json!("sku")), "{sku}");
            assert!(refused.body["detail"].as_str().unwrap().contains("NFKC"), "{refused:?}");
        }
    }
    for name in [" Pen", "Pen\u{a0}", "P\u{200b}en", "P\u{202e}en", "O\u{308}l"] {
        let refused = client.put("/items/pen", json!({"name": name, "price_cents": 150})).await;
        assert_eq!((refused.status, &refused.body["field"]), (422, &json!("name")), "{name:?}");
    }
    assert!(fixture.outbox_entries().await.is_empty());
}

#[tokio::test]
async fn a_sku_stored_by_an_older_version_is_a_valid_cursor() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 1).await;
    sqlx::query("update items set sku = 'o\u{308}l'").execute(&fixture.db).await.unwrap();
    add_stock(&client, "p", 1).await;
    let first = client.get("/items?limit=1").await.body["next"].clone();
    assert_eq!(first, "o\u{308}l");
    let rest = client.get("/items?limit=1&after=o%CC%88l").await;
    assert_eq!((rest.status, &rest.body["items"][0]["sku"]), (200, &json!("p")));
}

#[test]
fn the_committed_openapi_document_matches_the_code() {
    testing::compare_openapi("stock", env!("CARGO_MANIFEST_DIR"), &api::routes());
}

#[tokio::test]
async fn the_serving_role_cannot_rewrite_what_is_append_only() {
    let (fixture, _client) = fixture().await;
    fixture.assert_append_only(&["deliveries"]).await;
}
