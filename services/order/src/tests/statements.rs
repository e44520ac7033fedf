//! The statements that load and save the rows.

use super::*;
use crate::order::CancelOrder;
use chassis::{Loads, UnitOfWork};

#[tokio::test]
async fn the_rows_are_loaded_and_saved_by_the_statements_of_the_snapshot() {
    let (fixture, client) = fixture_with_items().await;
    let known = post_order(&client).await;
    let (pen, nib) = (item("pen", 160, "EUR", 2), item("nib", 1, "EUR", 1));
    let mut keys = <Orders as UnitOfWork>::Keys::default();
    for order_id in [known, ORDER] {
        Orders::keys(&CancelOrder { order_id, reason: Reason::Customer }, &mut keys);
    }
    for item in [&pen, &nib] {
        Orders::keys(item, &mut keys);
    }
    let change = |rows: &mut Orders| {
        let order = rows.order(known).unwrap().clone();
        let created = order.created();
        rows.put_order(Order { order_id: ORDER, ..order.clone() });
        rows.put_order(order);
        rows.record_published(&created, ORDER, context(0));
        for item in [pen, nib] {
            saga::item_changed(&item, rows, context(0)).unwrap();
        }
    };
    fixture.compare_statements(env!("CARGO_MANIFEST_DIR"), keys, change).await;
}
