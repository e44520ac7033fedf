//! The statements that load and save the rows.

use super::*;
use crate::stock::{Delivery, Item, Keys, PutItem, Reservation, State};
use chassis::Loads;

const OTHER_ORDER: Uuid = Uuid::max();

#[tokio::test]
async fn the_rows_are_loaded_and_saved_by_the_statements_of_the_snapshot() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 5).await;
    let order = created(ORDER, &[("pen", 2)]);
    fixture.deliver(&[(Uuid::now_v7(), &order)], saga::reserve_stock).await.unwrap();
    let keys = || {
        let mut keys = Keys::default();
        for sku in ["pen", "ink"] {
            let (sku, name, currency) = (sku.into(), sku.into(), "EUR".into());
            Warehouse::keys(&PutItem { sku, name, price_cents: 90, currency }, &mut keys);
        }
        for order_id in [ORDER, OTHER_ORDER] {
            Warehouse::keys(&cancelled(order_id), &mut keys);
        }
        keys
    };
    let change = |rows: &mut Warehouse| {
        let pen = rows.item("pen").unwrap().clone();
        let reserved = rows.reservation(ORDER).unwrap().clone();
        let (name, event_id) = ("Ink".to_string(), Uuid::max());
        rows.put_item(Item { sku: "ink".into(), name, event_id, version: 7, ..pen });
        rows.put_reservation(Reservation { order_id: OTHER_ORDER, ..reserved.clone() });
        rows.put_reservation(Reservation {
            state: State::Released,
            compensation_event_id: Some(Uuid::max()),
            updated_at: context(1).now,
            ..reserved
        });
        rows.release("pen", 2);
        let delivery = Delivery { delivery_id: Uuid::max(), sku: "pen".into(), quantity: 1 };
        rows.add_delivery(&delivery, context(1).now);
    };
    let saved_rows = |rows: &Warehouse| {
        let items = ["pen", "ink"].map(|sku| rows.item(sku).cloned());
        (items, [ORDER, OTHER_ORDER].map(|order_id| rows.reservation(order_id).cloned()))
    };
    fixture.compare_statements(env!("CARGO_MANIFEST_DIR"), keys, change, saved_rows).await;
    assert_eq!(fixture.count_rows("items").await, 1, "nothing is committed");
}
