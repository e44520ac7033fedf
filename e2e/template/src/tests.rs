//! The rules of shop, then its edges on a real database.

use chassis::HandlerContext;
use chrono::DateTime;
use events::purchases::{ConfirmedLine, PurchaseConfirmed};
use serde_json::json;
use testing::{TestClient, TestService};
use uuid::Uuid;

use crate::purchases::Purchases;
use crate::{api, saga};

const PURCHASE: Uuid = Uuid::from_u128(7);

fn context() -> HandlerContext {
    let now = DateTime::from_timestamp(1_795_132_800, 0).unwrap();
    HandlerContext { now, event_id: Uuid::from_u128(1), causation_id: Some(Uuid::from_u128(2)) }
}

/// Two pens of 1.50 and an ink of 4.00.
fn confirmed(purchase_id: Uuid, total_cents: i64) -> PurchaseConfirmed {
    let line = |(sku, quantity, unit_price_cents): (&str, _, _)| ConfirmedLine {
        sku: sku.to_string(),
        quantity,
        unit_price_cents,
    };
    PurchaseConfirmed {
        purchase_id,
        customer_id: Uuid::max(),
        lines: [("pen", 2, 150), ("ink", 1, 400)].map(line).into(),
        total_cents,
        currency: "EUR".into(),
        occurred_at: context().now,
    }
}

#[test]
fn a_confirmed_purchase_is_recorded_once() {
    let mut purchases = Purchases::default();
    let purchase = confirmed(PURCHASE, 700);
    let published = saga::record_confirmed(&purchase, &mut purchases, context());
    let noted = purchases.purchase(PURCHASE).unwrap().clone();
    assert_eq!(published, Ok(noted.published()));
    assert_eq!((noted.lines.len(), noted.total_cents, noted.confirmed_at), (2, 700, context().now));
    assert_eq!(saga::record_confirmed(&purchase, &mut purchases, context()), Ok(None));
    assert_eq!(purchases.purchase(PURCHASE), Some(&noted));
}

#[test]
fn lines_that_add_up_to_something_else_are_unprocessable() {
    let mut purchases = Purchases::default();
    saga::record_confirmed(&confirmed(PURCHASE, 701), &mut purchases, context()).unwrap_err();
    let mut beyond = confirmed(PURCHASE, 700);
    beyond.lines[0].unit_price_cents = i64::MAX;
    saga::record_confirmed(&beyond, &mut purchases, context()).unwrap_err();
    assert_eq!(purchases.purchase(PURCHASE), None);
}

#[tokio::test]
async fn a_confirmed_purchase_is_stored_once_readable_and_balanced() {
    let fixture = TestService::<Purchases>::new("shop", sqlx::migrate!()).await;
    let client = TestClient::of_api(api::router(fixture.db.clone()));
    let (event_id, purchase) = (Uuid::now_v7(), confirmed(PURCHASE, 700));
    for event_id in [event_id, event_id, Uuid::now_v7()] {
        fixture.deliver(&[(event_id, &purchase)], saga::record_confirmed).await.unwrap();
    }
    let other = confirmed(Uuid::from_u128(8), 700);
    fixture.deliver(&[(Uuid::now_v7(), &other)], saga::record_confirmed).await.unwrap();

    let shown = client.get(&format!("/purchases/{PURCHASE}")).await;
    assert_eq!((shown.status, &shown.body["total_cents"]), (200, &json!(700)), "{shown:?}");
    assert_eq!(
        shown.body["lines"][0],
        json!({"sku": "pen", "quantity": 2, "unit_price_cents": 150})
    );
    assert_eq!(client.get(&format!("/purchases/{}", Uuid::nil())).await.status, 404);
    let books = fixture.books(api::BOOKS).get("/books").await.body;
    let (total, none) = (1_400, Vec::<u8>::new());
    assert_eq!(
        books,
        json!({"purchases": 2, "total_cents": total, "lines_cents": total, "balanced": true, "written_off": none})
    );
    fixture.assert_append_only(&["confirmed_purchases"]).await;
}

#[test]
fn the_committed_openapi_document_matches_the_code() {
    testing::compare_openapi("shop", env!("CARGO_MANIFEST_DIR"), &api::routes());
}
