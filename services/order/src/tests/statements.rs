//! The statements that load and save the rows.

use super::*;
use crate::order::CancelOrder;
use chassis::{Loads, UnitOfWork};

#[tokio::test]
async fn the_rows_are_loaded_and_saved_by_the_statements_of_the_snapshot() {
    let (fixture, client) = fixture_with_items().await;
    let known = post_order(&client).await;
    let (pen, nib) = (item("pen", 160, "EUR", 2), item("nib", 1, "EUR", 1));
    let keys = || {
        let mut keys = <Orders as UnitOfWork>::Keys::default();
        for order_id in [known, ORDER] {
            Orders::keys(&CancelOrder { order_id, caller: Caller::unrestricted() }, &mut keys);
        }
        for item in [&pen, &nib] {
            Orders::keys(item, &mut keys);
        }
        keys
    };
    let change = |rows: &mut Orders| {
        let pending = rows.order(known).unwrap().clone();
        rows.put_order(Order { order_id: ORDER, last_position: 0, ..pending.clone() });
        rows.record_published(&pending.created(), ORDER, context(1));
        rows.add_pending(ORDER, pending.created_at);
        rows.remove_pending(known);
        rows.put_order(Order {
            status: Status::Cancelled,
            reason: Some(Reason::Customer),
            payment: Leg::new(LegState::Accepted),
            stock: Leg::new(LegState::Accepted),
            ended_at: Some(context(1).now),
            ended_event_id: Some(Uuid::max()),
            last_position: 7,
            ..pending
        });
        for item in [&pen, &nib] {
            saga::item_changed(item, rows, context(1)).unwrap();
        }
    };
    let saved_rows = |rows: &Orders| {
        let items = ["pen", "nib"].map(|sku| rows.item(sku).cloned());
        (items, [known, ORDER].map(|order_id| rows.order(order_id).cloned()))
    };
    fixture.compare_statements(env!("CARGO_MANIFEST_DIR"), keys, change, saved_rows).await;
    assert_eq!(fixture.count_rows("orders").await, 1, "nothing is committed");
}
