//! The table of pending orders, and the operators' list of the oldest ones.

use utoipa_axum::router::OpenApiRouter;

use super::*;
use crate::{pending_orders, read_model, rebuild_order};

fn admin(fixture: &TestService<Orders>) -> TestClient {
    TestClient(pending_orders::router(fixture.db.clone()).into())
}

fn listed_ids(answer: &Value) -> Vec<String> {
    let orders = answer["orders"].as_array().unwrap().iter();
    orders.map(|order| order["order_id"].as_str().unwrap().to_string()).collect()
}

/// By the time of the database, an order is older by so many seconds.
async fn make_older(fixture: &TestService<Orders>, order_id: Uuid, seconds: i32) {
    for statement in [
        "update orders set created_at = created_at - make_interval(secs => $2) where order_id = $1",
        "update pending_orders set created_at = created_at - make_interval(secs => $2) where order_id = $1",
    ] {
        let older = sqlx::query(statement).bind(order_id).bind(seconds);
        older.execute(&fixture.db).await.unwrap();
    }
}

#[tokio::test]
async fn pending_orders_are_listed_oldest_first_with_the_services_that_they_wait_for() {
    let (fixture, client) = fixture_with_items().await;
    let (both, stock, payment, young) = (
        post_order(&client).await,
        post_order(&client).await,
        post_order(&client).await,
        post_order(&client).await,
    );
    deliver(&fixture, &[verified(stock)], saga::answered).await;
    deliver(&fixture, &[reserved(payment)], saga::answered).await;
    for (order_id, seconds) in [(both, 20), (stock, 5_000), (payment, 700)] {
        make_older(&fixture, order_id, seconds).await;
    }
    let admin = admin(&fixture);
    let answer = admin.get("/pending-orders").await.body;
    let ids = [stock, payment, both, young].map(|order_id| order_id.to_string());
    assert_eq!(listed_ids(&answer), ids);
    let waits_for: Vec<&Value> =
        answer["orders"].as_array().unwrap().iter().map(|order| &order["waits_for"]).collect();
    let (both_legs, stock_leg) = (json!(["payment", "stock"]), json!(["stock"]));
    assert_eq!(waits_for, [&stock_leg, &json!(["payment"]), &both_legs, &both_legs]);
    let oldest = client.get(&format!("/orders/{stock}")).await.body;
    let expected = json!({"order_id": stock, "created_at": oldest["created_at"], "payment": "verified",
                          "stock": "waiting", "waits_for": ["stock"]});
    assert_eq!(answer["orders"][0], with_further_legs(expected), "and nothing of the customer");
    let counts: Vec<i64> = answer["by_age"]
        .as_array()
        .unwrap()
        .iter()
        .map(|age| age["orders"].as_i64().unwrap())
        .collect();
    assert_eq!((&answer["pending"], counts), (&json!(4), vec![3, 2, 2, 1, 0]));
    assert!(answer["read_at"].is_string());
    // The same answer serves every question of the next second.
    let of_query =
        async |query: &str| listed_ids(&admin.get(&format!("/pending-orders?{query}")).await.body);
    assert_eq!(of_query("older_than_seconds=60").await, ids[..2]);
    assert_eq!(of_query("older_than_seconds=60&limit=1").await, ids[..1]);
    assert_eq!(of_query("limit=200").await, ids);
    for wrong in ["limit=0", "limit=201", "limit=x", "older_than_seconds=-1", "state=pending"] {
        assert_eq!(admin.get(&format!("/pending-orders?{wrong}")).await.status, 422, "{wrong}");
    }
}

#[tokio::test]
async fn an_order_leaves_the_list_when_it_ends_and_not_before() {
    let (fixture, client) = fixture_with_items().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(post_order(&client).await);
    }
    let left = async || -> Vec<Uuid> {
        sqlx::query_scalar("select order_id from pending_orders order by order_id")
            .fetch_all(&fixture.db)
            .await
            .unwrap()
    };
    deliver(&fixture, &[verified(ids[0])], saga::answered).await;
    assert_eq!(left().await, ids);
    deliver(&fixture, &[reserved(ids[0])], saga::answered).await;
    assert_eq!(left().await, ids[1..]);
    // Several orders of one batch.
    deliver(&fixture, &[declined(ids[1]), declined(ids[2])], saga::answered).await;
    assert_eq!(left().await, ids[3..]);
    client.post(&format!("/orders/{}/cancel", ids[3]), None, json!({})).await;
    assert_eq!(left().await, ids[4..]);
    // The answer to an order that has ended changes nothing here.
    deliver(&fixture, &[refunded(ids[3], None)], saga::answered).await;
    deliver(&fixture, &[rejected(ids[4])], saga::answered).await;
    assert_eq!(left().await, Vec::<Uuid>::new());
    assert_eq!(admin(&fixture).get("/pending-orders").await.body["pending"], 0);
}

#[tokio::test]
async fn all_callers_share_one_query_a_second() {
    let (fixture, client) = fixture_with_items().await;
    let admin = admin(&fixture);
    let get = async || {
        let answer = admin.get("/pending-orders").await.body;
        (answer["read_at"].clone(), answer["orders"].as_array().unwrap().len())
    };
    let first = get().await;
    assert_eq!(first.1, 0);
    post_order(&client).await;
    let answers = futures::future::join_all((0..50).map(|_| get())).await;
    assert!(answers.iter().all(|answer| *answer == first), "{answers:?}");
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let later = get().await;
    assert!(later.1 == 1 && later.0 != first.0, "{later:?}");
}

#[test]
fn the_metric_has_a_label_for_each_set_of_services_that_an_order_can_wait_for() {
    let labels: Vec<String> = pending_orders::waits().map(|(_, label)| label).collect();
    assert_eq!(labels[..4], ["order", "payment", "stock", "payment and stock"]);
    assert_eq!(labels.len(), 1 << participants().len());
}

#[test]
fn the_committed_openapi_document_of_the_operators_matches_the_code() {
    let mut added = pending_orders::routes().into_openapi();
    added.merge(read_model::routes().into_openapi());
    added.merge(rebuild_order::routes().into_openapi());
    let added = OpenApiRouter::<()>::with_openapi(added);
    testing::compare_admin_openapi("order", env!("CARGO_MANIFEST_DIR"), &added);
}
