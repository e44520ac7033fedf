//! The registry loses its data beside topics with records, and gives other ids from then on.

use e2e::metrics::Metrics;
use e2e::stack_description::checkout;
use faults::{database_faults, registry_loss};

use super::*;

/// The schemas of strangers take the ids that the first topics had.
const STRANGERS: usize = 3;

/// The exit status of a program whose configuration can never work.
const CONFIGURATION_ERROR: i32 = 64;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn a_registry_that_lost_its_data_makes_no_dead_letter_and_the_page_leads_back() -> Result<()>
{
    on_ephemeral_stack(registry_replaced).await
}

async fn registry_replaced(stack: &Stack) -> Result<()> {
    let client = start_and_seed(stack).await?;
    confirm_orders(&client, 6).await?;
    stack.stop("stock").await?;
    let mut orders = place_orders(&client, 6).await?;
    wait_until_outbox_empty(&client, "order").await?;

    registry_loss::lose_data(stack, STRANGERS).await?;
    let refused = registry_loss::apply_contracts(stack, None)?;
    let message = String::from_utf8_lossy(&refused.stderr);
    ensure!(refused.status.code() == Some(CONFIGURATION_ERROR), "{:?}: {message}", refused.status);
    ensure!(
        message.contains("ACCEPT_EMPTY_REGISTRY=1") && message.contains("records"),
        "{message}"
    );

    let applied = registry_loss::apply_contracts(stack, Some("1"))?;
    ensure!(applied.status.success(), "{}", String::from_utf8_lossy(&applied.stderr));
    // Payment and order still have the ids of before.
    orders.extend(place_orders(&client, 6).await?);
    stack.start("stock").await?;
    wait_until_confirmed(&client, &orders).await?;
    for service in ["order", "payment"] {
        restart(stack, service).await?;
    }
    let orders = place_orders(&client, 6).await?;
    wait_until_confirmed(&client, &orders).await?;
    for service in SERVICES {
        let letters = waiting_dead_letters(&client, service).await?;
        ensure!(letters.is_empty(), "{service} has dead letters: {letters:?}");
    }
    ensure!(conflicts(stack, &client).await? > 0.0, "no metric tells of it");

    for (service, sql) in statements_of_the_page()? {
        database_faults::execute(stack, &service, &[sql]).await?;
    }
    eventually("the metric to rest", TIMEOUT, async || {
        let before = conflicts(stack, &client).await?;
        confirm_orders(&client, 3).await?;
        sleep(Duration::from_secs(11)).await;
        confirm_orders(&client, 3).await?;
        let after = conflicts(stack, &client).await?;
        ensure!(after == before, "{before} and then {after}");
        Ok(())
    })
    .await?;
    assert_verified(&client).await
}

async fn conflicts(stack: &Stack, client: &Client) -> Result<f64> {
    let mut sum = 0.0;
    for service in SERVICES {
        let metrics = Metrics::fetch(stack, client, service).await?;
        sum += metrics.sum("schema_id_conflicts_total").context("the counter exists")?;
    }
    Ok(sum)
}

/// The statements of `docs/how-to/restore.md` that accept the new ids, each with its service.
fn statements_of_the_page() -> Result<Vec<(String, &'static str)>> {
    let page = std::fs::read_to_string(checkout().join("docs/how-to/restore.md"))?;
    let found = page.lines().filter_map(|line| {
        let (service, sql) = line.trim().strip_prefix("make sql SERVICE=")?.split_once(" SQL=")?;
        let sql = sql.trim_matches('"');
        let sql: &'static str = sql.to_owned().leak();
        sql.contains("schema_ids").then(|| (service.to_owned(), sql))
    });
    let found: Vec<_> = found.collect();
    ensure!(found.len() == SERVICES.len(), "{found:?}");
    Ok(found)
}
