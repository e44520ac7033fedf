//! The statements that load and save the rows.

use super::*;
use crate::stock::{Delivery, Item, Keys, PutItem, Reservation};
use chassis::Loads;

#[tokio::test]
async fn the_rows_are_loaded_and_saved_by_the_statements_of_the_snapshot() {
    let (fixture, client) = fixture().await;
    add_stock(&client, "pen", 5).await;
    let order = created(ORDER, &[("pen", 2)]);
    fixture.deliver(&[(Uuid::now_v7(), &order)], saga::reserve_stock).await.unwrap();
    let mut keys = Keys::default();
    let put =
        PutItem { sku: "ink".into(), name: "Ink".into(), price_cents: 90, currency: "EUR".into() };
    Warehouse::keys(&put, &mut keys);
    for order_id in [ORDER, Uuid::max()] {
        Warehouse::keys(&cancelled(order_id), &mut keys);
    }
    let change = |rows: &mut Warehouse| {
        let (pen, known) = (rows.item("pen").unwrap(), rows.reservation(ORDER).unwrap());
        let ink = Item { sku: "ink".into(), ..pen.clone() };
        let (known, other) =
            (known.clone(), Reservation { order_id: Uuid::max(), ..known.clone() });
        rows.put_item(ink);
        rows.put_reservation(known);
        rows.put_reservation(other);
        let delivery = Delivery { delivery_id: Uuid::max(), sku: "pen".into(), quantity: 1 };
        rows.add_delivery(&delivery, context(0).now);
    };
    fixture.compare_statements(env!("CARGO_MANIFEST_DIR"), keys, change).await;
}
