//! What the order service published, said once more.

use super::deadline::sweep;
use super::*;

#[tokio::test]
async fn what_was_published_is_announced_again_word_for_word() {
    let (bench, client) = stocked_bench().await;
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(placed(&client).await);
    }
    bring(&bench, &[verified(ids[0])], saga::payment_verified).await;
    bring(&bench, &[reserved(ids[0])], saga::stock_reserved).await;
    bring(&bench, &[declined(ids[1])], saga::payment_declined).await;
    bring(&bench, &[rejected(ids[2])], saga::stock_rejected).await;
    client.post(&format!("/orders/{}/cancel", ids[3]), None, json!({})).await;
    sqlx::query("update orders set created_at = now() - interval '1 minute' where order_id = $1")
        .bind(ids[4])
        .execute(&bench.db)
        .await
        .unwrap();
    // Its record said another time, which is nothing that happens.
    sqlx::query("delete from outbox where key = $1")
        .bind(ids[4].to_string())
        .execute(&bench.db)
        .await
        .unwrap();
    let (_, created) = bench.announced([orders()], json!({"key": ids[4]})).await;
    assert_eq!(created.len(), 1);
    sweep(&bench, &mut Default::default(), Some(Duration::ZERO)).await;
    let mut said = bench.said().await;
    let (answer, again) = bench.announced([orders()], json!({})).await;
    assert_eq!((answer.status, &answer.body["announced"]), (200, &json!(11)));
    said.sort_by(|a, b| a.2.cmp(&b.2));
    assert_eq!(again, said, "by order, and of each in the order in which it was said");
}

fn orders() -> chassis::announce::Source {
    chassis::announce::of::<Order>()
}
