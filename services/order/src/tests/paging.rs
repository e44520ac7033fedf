//! Lists are read in pages, and concurrent writes move no row from one page to another.

use super::*;

/// Reads a list page by page, does something after each page, and returns every key that it read.
async fn page_through(
    client: &TestClient,
    list: &str,
    (rows, key): (&str, &str),
    mut meanwhile: impl AsyncFnMut(),
) -> Vec<String> {
    let (mut seen, mut next) = (Vec::new(), String::new());
    for _ in 0..100 {
        let page = client.get(&format!("{list}limit=3{next}")).await;
        assert_eq!(page.status, 200, "{page:?}");
        let rows = page.body[rows].as_array().unwrap();
        assert!(rows.len() == 3 || page.body["next"].is_null(), "{page:?}");
        seen.extend(rows.iter().map(|row| row[key].as_str().unwrap().to_owned()));
        let Some(after) = page.body["next"].as_str() else { return seen };
        assert_eq!(seen.last().unwrap(), after);
        next = format!("&after={after}");
        meanwhile().await;
    }
    panic!("a list without an end");
}

#[tokio::test]
async fn paging_through_a_growing_list_shows_each_earlier_row_exactly_once() {
    let (fixture, client) = fixture_with_items().await;
    let mut there = Vec::new();
    for _ in 0..10 {
        there.push(post_order(&client).await.to_string());
    }
    // They have one time, as orders that share a transaction have.
    sqlx::query("update orders set created_at = now()").execute(&fixture.db).await.unwrap();
    let mine = format!("/orders?customer_id={CUSTOMER}&");
    let seen = page_through(&client, &mine, ("orders", "order_id"), async || {
        post_order(&client).await;
    });
    there.reverse();
    assert_eq!(seen.await, there, "newest first");

    let numbered = |nth: usize| item(&format!("sku-{nth:02}"), 1, "EUR", 1);
    let even: Vec<_> = (0..10).map(|nth| numbered(2 * nth)).collect();
    deliver(&fixture, &even, saga::item_changed).await;
    let mut later = (0..10).map(|nth| numbered(2 * nth + 1));
    let seen = page_through(&client, "/items?", ("items", "sku"), async || {
        deliver(&fixture, &[later.next().unwrap()], saga::item_changed).await;
    });
    let (mut seen, even) = (seen.await, even.iter().map(|item| item.sku.clone()));
    assert!(seen.is_sorted_by(|a, b| a < b), "by SKU, and none twice: {seen:?}");
    let expected: Vec<_> = ["ink", "pen"].map(String::from).into_iter().chain(even).collect();
    seen.retain(|sku| !was_added_later(sku));
    assert_eq!(seen, expected);
}

/// Whether an item was added while the list was read: those have odd numbers.
fn was_added_later(sku: &str) -> bool {
    sku.strip_prefix("sku-").is_some_and(|nth| nth.parse::<u32>().unwrap() % 2 == 1)
}

#[tokio::test]
async fn a_sku_stored_by_an_older_version_is_a_valid_cursor() {
    let (fixture, client) = fixture().await;
    let old = StockItem { sku: "o\u{308}l".to_string(), ..item("", 1, "EUR", 1) };
    saga::item_changed(&old, &mut Orders::default(), context(0)).unwrap_err();
    deliver(&fixture, &[item("o", 1, "EUR", 1), item("p", 1, "EUR", 1)], saga::item_changed).await;
    let older = "update items set sku = 'o\u{308}l' where sku = 'o'";
    sqlx::query(older).execute(&fixture.db).await.unwrap();
    let page = client.get("/items?limit=1&after=o%CC%88l").await;
    assert_eq!((page.status, &page.body["items"][0]["sku"]), (200, &json!("p")));
}

#[tokio::test]
async fn an_invalid_page_is_refused_by_its_parameter() {
    let (_fixture, client) = fixture().await;
    for (query, field) in [
        ("/items?limit=0", "limit"),
        ("/items?limit=1001", "limit"),
        ("/items?limit=many", "limit"),
        ("/items?after=", "after"),
        ("/items?after=%00", "after"),
        ("/items?page=2", "page"),
        (&format!("/orders?customer_id={CUSTOMER}&limit=101"), "limit"),
        (&format!("/orders?customer_id={CUSTOMER}&after=7"), "after"),
    ] {
        let refused = client.get(query).await;
        let actual = (refused.status, refused.body["field"].as_str());
        assert_eq!(actual, (422, Some(field)), "{query}: {refused:?}");
    }
}
