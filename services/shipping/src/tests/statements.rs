//! The statements that load and save the rows.

use std::collections::BTreeSet;

use testing::TestService;

use super::*;

const OTHER_ORDER: Uuid = Uuid::max();

#[tokio::test]
async fn the_rows_are_loaded_and_saved_by_the_statements_of_the_snapshot() {
    let fixture = TestService::<Shipments>::new("shipping", sqlx::migrate!()).await;
    let event = confirmed(ORDER, &[3]);
    fixture.deliver(&[(Uuid::now_v7(), &event)], saga::ship).await.unwrap();
    let keys = || BTreeSet::from([ORDER, OTHER_ORDER]);
    let change = |rows: &mut Shipments| {
        saga::ship(&confirmed(OTHER_ORDER, &[1]), rows, context(10)).unwrap();
        for kind in ["parcel.collected", "parcel.delivered"] {
            let news = serde_json::from_value(news(kind, ORDER, PARCEL)).unwrap();
            saga::hear(&news, rows, context(20)).unwrap();
        }
    };
    let saved_rows =
        |rows: &Shipments| [ORDER, OTHER_ORDER].map(|order_id| rows.shipment(order_id).cloned());
    fixture.compare_statements(env!("CARGO_MANIFEST_DIR"), keys, change, saved_rows).await;
    assert_eq!(fixture.count_rows("shipments").await, 1, "nothing is committed");
}
