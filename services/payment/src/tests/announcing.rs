//! What payment published, said once more.

use super::*;
use crate::payment::Payment;

#[tokio::test]
async fn what_was_published_is_announced_again_word_for_word() {
    let (bench, client) = bench().await;
    deposited(&client, CUSTOMER, 250, "a").await;
    let id = |nth: u128| Uuid::from_u128(nth);
    let orders = [
        created(id(1), CUSTOMER, 100, "EUR"),
        created(id(2), CUSTOMER, 90, "EUR"),
        created(id(3), CUSTOMER, 900, "EUR"),
        created(id(4), CUSTOMER, 1, "CHF"),
        created(id(5), Uuid::now_v7(), 1, "EUR"),
    ];
    for order in &orders {
        bench.bring(&[(Uuid::now_v7(), order)], saga::verify_payment).await.unwrap();
    }
    for order in [cancelled(id(2)), cancelled(id(3)), cancelled(id(9))] {
        bench.bring(&[(Uuid::now_v7(), &order)], saga::refund_payment).await.unwrap();
    }
    let mut said = bench.said().await;
    let payments = || [chassis::announce::of::<Payment>()];
    let (answer, again) = bench.announced(payments(), json!({})).await;
    assert_eq!((answer.status, &answer.body["announced"]), (200, &json!(7)));
    said.sort_by(|a, b| a.2.cmp(&b.2));
    assert_eq!(again, said, "by order, and of each in the order in which it was said");
    let (_, one) = bench.announced(payments(), json!({"key": id(2)})).await;
    assert_eq!(one, said[1..3]);
    let (nothing, _) = bench.announced(payments(), json!({"key": id(8)})).await;
    assert_eq!(nothing.status, 404);
    // Of a service that records nothing, there is nothing to say.
    let (silent, none) = bench.announced([], json!({})).await;
    assert_eq!((silent.status, &silent.body["announced"], none.len()), (200, &json!(0), 0));
}
