//! The restore drill: the database of one service is set back to a backup, while the others, Kafka and the registry
//! keep all that came after it.

use std::path::Path;
use std::process::Command;

use e2e::scenarios::redelivery;
use sqlx::{AssertSqlSafe, Connection, PgConnection};

use super::*;

const ORDERS: usize = 60;

/// F13b.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_database_that_is_set_back_becomes_complete_by_itself() -> Result<()> {
    on_ephemeral_stack(async |stack| {
        let client = start_and_seed(stack).await?;
        for service in ["stock", "payment"] {
            set_back(stack, &client, service).await?;
        }
        Ok(())
    })
    .await
}

async fn set_back(stack: &Stack, client: &Client, service: &'static str) -> Result<()> {
    let database = format!("{service}-db");
    let cluster = stack.directory().join(&database);
    let backup = stack.directory().join(format!("{database}-backup"));
    confirm_orders(client, ORDERS).await?;
    for component in [service, &database] {
        stack.stop(component).await?;
    }
    copy(&cluster, &backup)?;
    for component in [&database, service] {
        stack.start(component).await?;
    }
    // What it decides now is in its topics and with its subscribers, and not in the backup.
    confirm_orders(client, ORDERS).await?;
    wait_until_all_read(client, service).await?;
    let decided = decisions(client, service).await?;
    for component in [service, &database] {
        stack.stop(component).await?;
    }
    std::fs::remove_dir_all(&cluster)?;
    std::fs::rename(&backup, &cluster)?;
    stack.start(&database).await?;
    let left = decisions(client, service).await?;
    ensure!(left.len() + ORDERS == decided.len(), "{} of {}", left.len(), decided.len());

    // The database also has the positions of the backup, below the group's committed offsets.
    stack.start(service).await?;
    let again = async || Ok(decisions(client, service).await?.len());
    wait_for("all is decided again", TIMEOUT, again, |again| *again == decided.len()).await?;
    wait_until_all_read(client, service).await?;
    // It decides again what it decided before, as the same events: their subscribers know them.
    ensure!(decisions(client, service).await? == decided, "{service} decided otherwise");
    ensure!(redelivery::consumer_lag(client, service).await? == 0);
    assert_verified(client).await
}

/// The answer to each order, by the id of its event.
async fn decisions(client: &Client, service: &str) -> Result<Vec<(Uuid, Option<Uuid>)>> {
    let table = if service == "stock" { "reservations" } else { "payments" };
    let query = format!("select order_id, response_event_id from {table} order by order_id");
    let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
    Ok(sqlx::query_as(AssertSqlSafe(query)).fetch_all(&mut db).await?)
}

/// As a backup of the whole cluster, whose owner and rights stay as they are.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let copied = Command::new("cp").arg("-a").args([from, to]).status()?;
    ensure!(copied.success(), "{} cannot be copied", from.display());
    Ok(())
}
