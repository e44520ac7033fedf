//! A state that was wrong for a moment is visible in the change log of the databases.

use anyhow::{Result, ensure};
use e2e::checker::change_log;
use e2e::checker::run;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use crate::fixture::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_transient_violation_is_found_with_the_change_log() -> Result<()> {
    with_unverified_fixture(async |fixture| {
        let checked = violate_and_check(fixture).await;
        change_log::remove(&fixture.client).await?;
        checked?;
        let changes = fixture.verify().await?.changes;
        ensure!(changes.is_none(), "the change log still has {changes:?}");
        Ok(())
    })
    .await
}

async fn violate_and_check(fixture: &Fixture) -> Result<()> {
    let client = &fixture.client;
    change_log::install(client).await?;
    change_log::install(client).await?;
    let orders = place_orders(client, 50).await?;
    wait_until_confirmed(client, &orders).await?;
    let changes = fixture.verify().await?.changes;
    // An order is inserted and updated at least once, and so are the rows of payment and stock for
    // it.
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
    let verdict = run::run(client, &run::CheckOptions::default()).await?;
    let found = verdict.findings.kinds();
    ensure!(found == ["I3 fell", "I7 again", "I7 effect"], "{:?}", verdict.findings);
    Ok(())
}
