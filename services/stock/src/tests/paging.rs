//! Items are read in pages, and concurrent writes move no item from one page to another.

use super::*;

#[tokio::test]
async fn paging_through_growing_items_shows_each_earlier_item_exactly_once() {
    let (_fixture, client) = fixture().await;
    let named = |nth: usize| format!("sku-{nth:02}");
    let made = async |nth: usize| {
        let request = json!({"name": "Pen", "price_cents": 150});
        assert_eq!(client.put(&format!("/items/{}", named(nth)), request).await.status, 201);
    };
    for nth in 0..10 {
        made(2 * nth).await;
    }
    let (mut seen, mut path) = (Vec::new(), "/items?limit=3".to_string());
    for nth in 0..10 {
        let page = client.get(&path).await;
        assert_eq!(page.status, 200, "{page:?}");
        let items = page.body["items"].as_array().unwrap();
        assert!(items.len() == 3 || page.body["next"].is_null(), "{page:?}");
        seen.extend(items.iter().map(|item| item["sku"].as_str().unwrap().to_owned()));
        let Some(after) = page.body["next"].as_str() else { break };
        assert_eq!(seen.last().unwrap(), after);
        path = format!("/items?limit=3&after={after}");
        made(2 * nth + 1).await;
    }
    assert!(seen.is_sorted_by(|a, b| a < b), "by SKU, and none twice: {seen:?}");
    let even: Vec<String> = (0..10).map(|nth| named(2 * nth)).collect();
    seen.retain(|sku| even.contains(sku));
    assert_eq!(seen, even);
}
