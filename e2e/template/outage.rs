//! Outages of shipping: orders are confirmed without it, and once it is back it has them all. These
//! tests run beside those of the whole stack, in `e2e`.

use std::time::Duration;

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use launcher::eventually;
use serde_json::Value;

use crate::fixture::{Fixture, basket, rich_customer, with_exclusive_fixture};

const TIMEOUT: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn shipping_killed_or_without_its_database_misses_no_confirmed_order() -> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        for victim in ["shipping", "shipping-db"] {
            stack.kill(victim).await?;
            let placed = (0..50)
                .map(async |_| client.place_until_accepted(rich_customer(), &basket()).await);
            let placed = try_join_all(placed).await?;
            for order in &placed {
                let ended = client.wait_until_ended(order.order_id, TIMEOUT).await?;
                ensure!(ended.status == "confirmed", "{ended:?}");
            }
            stack.start(victim).await?;
            for order in &placed {
                let known = eventually("shipping to receive the order", TIMEOUT, async || {
                    client.get::<Value>("shipping", &format!("/orders/{}", order.order_id)).await
                })
                .await?;
                ensure!(known["total_cents"] == order.total_cents, "{known}");
            }
        }
        let books = client.books("shipping").await?;
        ensure!(books["balanced"] == true && books["orders"].as_i64() >= Some(100), "{books}");
        Ok(())
    })
    .await
}
