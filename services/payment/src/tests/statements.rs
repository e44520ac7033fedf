//! The statements that load and save the rows.

use super::*;
use crate::payment::{Deposit, Keys, Payment, State};
use chassis::Loads;

const OTHER_ORDER: Uuid = Uuid::max();
const OTHER_CUSTOMER: Uuid = Uuid::max();

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
    let keys = || {
        let mut keys = Keys::default();
        for order_id in [ORDER, OTHER_ORDER] {
            Ledger::keys(&cancelled(order_id), &mut keys);
        }
        Ledger::keys(&deposit(OTHER_CUSTOMER), &mut keys);
        keys
    };
    let change = |rows: &mut Ledger| {
        let verified = rows.payment(ORDER).unwrap().clone();
        rows.put_payment(Payment { order_id: OTHER_ORDER, ..verified.clone() });
        rows.put_payment(Payment {
            state: State::Refunded,
            compensation_event_id: Some(Uuid::max()),
            updated_at: context(1).now,
            ..verified
        });
        rows.credit(CUSTOMER, 100);
        rows.deposit(&deposit(CUSTOMER), context(1).now);
        rows.deposit(&deposit(OTHER_CUSTOMER), context(1).now);
    };
    let saved_rows = |rows: &Ledger| {
        let accounts = [CUSTOMER, OTHER_CUSTOMER].map(|id| rows.account(id).cloned());
        (accounts, [ORDER, OTHER_ORDER].map(|order_id| rows.payment(order_id).cloned()))
    };
    fixture.compare_statements(env!("CARGO_MANIFEST_DIR"), keys, change, saved_rows).await;
    assert_eq!(fixture.count_rows("payments").await, 1, "nothing is committed");
}
