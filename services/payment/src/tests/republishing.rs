//! What payment published can be republished.

use chassis::Republish;

use super::*;
use crate::payment::Payment;

#[tokio::test]
async fn published_events_are_republished_unchanged() {
    let (fixture, client) = fixture().await;
    post_deposit(&client, CUSTOMER, 250, "a").await;
    let id = |nth: u128| Uuid::from_u128(nth);
    let orders = [
        created(id(1), CUSTOMER, 100, "EUR"),
        created(id(2), CUSTOMER, 90, "EUR"),
        created(id(3), CUSTOMER, 900, "EUR"),
        created(id(4), CUSTOMER, 1, "CHF"),
        created(id(5), Uuid::now_v7(), 1, "EUR"),
    ];
    for order in &orders {
        fixture.deliver(&[(Uuid::now_v7(), order)], saga::verify_payment).await.unwrap();
    }
    for order in [cancelled(id(2)), cancelled(id(3)), cancelled(id(9))] {
        fixture.deliver(&[(Uuid::now_v7(), &order)], saga::refund_payment).await.unwrap();
    }
    let mut published = fixture.outbox_records().await;
    let payments = || [Payment::source()];
    let (answer, again) = fixture.republished(payments(), json!({})).await;
    assert_eq!((answer.status, &answer.body["republished"]), (200, &json!(7)));
    published.sort_by(|a, b| a.key.cmp(&b.key));
    assert_eq!(again, published, "by order, and of each in the order in which it was published");
    let (_, one) = fixture.republished(payments(), json!({"key": id(2)})).await;
    assert_eq!(one, published[1..3]);
    let (nothing, _) = fixture.republished(payments(), json!({"key": id(8)})).await;
    assert_eq!(nothing.status, 404);
    // A service that records nothing has nothing to republish.
    let (silent, none) = fixture.republished([], json!({})).await;
    assert_eq!((silent.status, &silent.body["republished"], none.len()), (200, &json!(0), 0));
}
