//! A broker that lost its disk: what the services remember is all there is, and it is enough.

use anyhow::{Result, ensure};
use e2e::announce::{self, Announce};
use e2e::client::eventually;

use crate::stage::{SOON, Stage, all_end, alone, place_all};

const PENDING: usize = 150;

/// Stock has orders in memory that it read from the old cluster, and handles them when the new one
/// is there: their places mean nothing in it.
#[tokio::test(flavor = "multi_thread")]
async fn after_the_broker_lost_its_disk_one_command_ends_every_order() -> Result<()> {
    alone(async |stage| {
        let Stage { stack, client } = stage;
        all_end(client, &place_all(client, 20).await?).await?;
        stack.kill("stock-db").await?;
        let orders = place_all(client, PENDING).await?;
        eventually("every payment to be verified", SOON, async || {
            for order in &orders {
                let order = client.order(order.order_id).await?;
                ensure!(order.payment == "verified" && order.status == "pending", "{order:?}");
            }
            Ok(())
        })
        .await?;
        announce::lose_the_disk(stack).await?;
        stack.start("stock-db").await?;

        let announced = announce::run(stack, &Announce::default()).await?;
        ensure!(announced.iter().all(|(_, count)| *count > 0), "{announced:?}");
        all_end(client, &orders).await?;
        let verdict = stage.verify().await?;
        let asked: u64 = announced.iter().map(|(_, count)| count).sum();
        ensure!(verdict.announced == asked, "{} of {asked}", verdict.announced);
        Ok(())
    })
    .await
}

/// Orders are placed while there is no broker, a service is started anew, and the command is given
/// twice: events that are in their topics already are repeats.
#[tokio::test(flavor = "multi_thread")]
async fn a_lost_disk_is_survived_by_services_that_start_anew_and_by_a_second_announcement()
-> Result<()> {
    alone(async |Stage { stack, client }| {
        stack.kill("payment").await?;
        let mut orders = place_all(client, 30).await?;
        announce::lose_the_disk(stack).await?;
        orders.extend(place_all(client, 30).await?);
        tokio::try_join!(stack.start("payment"), stack.kill("order"))?;
        stack.start("order").await?;
        announce::run(stack, &Announce::default()).await?;
        announce::run(stack, &Announce::default()).await?;
        all_end(client, &orders).await?;
        let key = orders[0].order_id.to_string();
        let one = Announce { key: Some(key), ..Announce::default() };
        let announced = announce::run(stack, &one).await?;
        ensure!(announced == [("order", 2), ("payment", 1), ("stock", 1)], "{announced:?}");
        let nobody = Announce { key: Some("nobody".into()), ..Announce::default() };
        ensure!(announce::run(stack, &nobody).await.is_err());
        Ok(())
    })
    .await
}
