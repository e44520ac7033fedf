//! The statements that load and save the rows.

use super::*;
use crate::payment::{Deposit, Keys, Payment};
use chassis::Loads;

#[tokio::test]
async fn the_rows_are_loaded_and_saved_by_the_statements_of_the_snapshot() {
    let (fixture, client) = fixture().await;
    post_deposit(&client, CUSTOMER, 250, "a").await;
    let order = created(ORDER, CUSTOMER, 100, "EUR");
    fixture.deliver(&[(Uuid::now_v7(), &order)], saga::verify_payment).await.unwrap();
    let deposit = |customer_id| Deposit {
        deposit_id: customer_id,
        customer_id,
        amount_cents: 1,
        currency: euros(),
    };
    let mut keys = Keys::default();
    for order_id in [ORDER, Uuid::max()] {
        Ledger::keys(&cancelled(order_id), &mut keys);
    }
    Ledger::keys(&deposit(Uuid::max()), &mut keys);
    let change = |rows: &mut Ledger| {
        let known = rows.payment(ORDER).unwrap().clone();
        rows.put_payment(Payment { order_id: Uuid::max(), ..known.clone() });
        rows.put_payment(known);
        rows.deposit(&deposit(CUSTOMER), context(0).now);
        rows.deposit(&deposit(Uuid::max()), context(0).now);
    };
    fixture.compare_statements(env!("CARGO_MANIFEST_DIR"), keys, change).await;
}
