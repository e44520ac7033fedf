//! What was wrong for a moment, and is right again, is seen where the databases write it down.

use anyhow::{Result, ensure};
use e2e::{verify, witness};
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::stage::{Stage, all_end, alone_and_checked, place_all};

#[tokio::test(flavor = "multi_thread")]
async fn what_was_wrong_for_a_moment_is_found_where_the_databases_are_asked_to_watch() -> Result<()>
{
    alone_and_checked(async |stage| {
        let watched = watched(stage).await;
        witness::remove(&stage.client).await?;
        watched?;
        let changes = stage.verify().await?.changes;
        ensure!(changes.is_none(), "{changes:?} are still there");
        Ok(())
    })
    .await
}

async fn watched(stage: &Stage) -> Result<()> {
    let client = &stage.client;
    witness::install(client).await?;
    witness::install(client).await?;
    let orders = place_all(client, 50).await?;
    all_end(client, &orders).await?;
    let changes = stage.verify().await?.changes;
    // An order is written and at least once changed, and so is what payment and stock have of it.
    ensure!(changes.is_some_and(|changes| changes > 50 * 4), "{changes:?}");

    let (id, customer) = (orders[0].order_id, orders[0].customer_id);
    let leg = |leg| format!("update orders set payment = '{leg}' where order_id = '{id}'");
    let money = |cents| {
        format!(
            "update accounts set taken_cents = taken_cents + {cents},
                 balance_cents = balance_cents - {cents} where customer_id = '{customer}'"
        )
    };
    let again = format!("update payments set updated_at = updated_at where order_id = '{id}'");
    for (service, done, undone) in [
        ("order", leg("refunded"), leg("verified")),
        ("payment", money(1), money(-1)),
        ("payment", again.clone(), again),
    ] {
        let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
        for statement in [done, undone] {
            sqlx::query(AssertSqlSafe(statement)).execute(&mut db).await?;
        }
    }
    let verdict = verify::run(client, &verify::Options::default()).await?;
    let found = verdict.findings.kinds();
    ensure!(found == ["I3 fell", "I7 again", "I7 effect"], "{:?}", verdict.findings);
    Ok(())
}
