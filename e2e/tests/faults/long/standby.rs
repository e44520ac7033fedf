//! A standby is down, while a database waits for it at each commit.

use std::collections::HashSet;

use e2e::client::outcome::{Outcome, require_accepted};
use faults::database_faults;
use futures::future::join_all;
use serde_json::Value;
use sqlx::{Connection, PgConnection};

use super::*;

const OUTAGE_DURATION: Duration = Duration::from_secs(40);
const POST_INTERVAL: Duration = Duration::from_millis(500);
const REPEAT_INTERVAL: Duration = Duration::from_secs(5);

/// What may wait in the database: four commits, one more for each loop that began it at the same moment, and the
/// statements of the tasks that prune and measure.
const WAITING_MAX: i64 = 12;

/// The sessions of the database that wait for the standby.
async fn count_waiting(db: &mut PgConnection) -> Result<i64> {
    let query = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    Ok(sqlx::query_scalar(query).fetch_one(db).await?)
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes a minute: make faults"]
async fn commits_that_wait_for_a_standby_stay_few_and_each_answer_to_their_clients_is_true()
-> Result<()> {
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let mut db = PgConnection::connect(&stack.database_url("order")?).await?;
        let (customer, first_key) = (Uuid::now_v7(), Uuid::now_v7().to_string());
        let place = async |key: &str| client.place_order(customer, &basket(), key).await;
        database_faults::set_absent_standby(stack, "order", true).await?;
        // The setting takes a moment to reach every session.
        let first = async || Ok(place(&first_key).await);
        let is_unknown = |outcome: &Outcome| matches!(outcome, Outcome::Unknown(_));
        let first = wait_for("a commit to wait", TIMEOUT, first, is_unknown).await?;
        let posts = (0..OUTAGE_DURATION.as_millis() / POST_INTERVAL.as_millis()).map(async |nth| {
            sleep(POST_INTERVAL * nth as u32).await;
            let key = Uuid::now_v7().to_string();
            let outcome = place(&key).await;
            (key, outcome)
        });
        let repeats = (1..OUTAGE_DURATION.as_secs() / REPEAT_INTERVAL.as_secs()).map(async |nth| {
            sleep(REPEAT_INTERVAL * nth as u32).await;
            place(&first_key).await
        });
        let measured = async {
            let (mut most, began) = (0, Instant::now());
            while began.elapsed() < OUTAGE_DURATION {
                most = most.max(count_waiting(&mut db).await?);
                sleep(POST_INTERVAL).await;
            }
            anyhow::Ok(most)
        };
        let (posts, repeats, most) = tokio::join!(join_all(posts), join_all(repeats), measured);
        database_faults::set_absent_standby(stack, "order", false).await?;

        let most = most?;
        ensure!((1..=WAITING_MAX).contains(&most), "{most} sessions waited at a time");
        for repeat in repeats {
            ensure!(matches!(repeat, Outcome::Unknown(_)), "its first request may hold: {repeat}");
        }
        let waiting = async || count_waiting(&mut db).await;
        wait_for("no session to wait", TIMEOUT, waiting, |count| *count == 0).await?;
        let listed: Value =
            client.get("order", &format!("/orders?customer_id={customer}&limit=100")).await?;
        let mut stored: HashSet<Uuid> = HashSet::new();
        for order in listed["orders"].as_array().context("a list")? {
            stored.insert(serde_json::from_value(order["order_id"].clone())?);
        }
        let outcomes = posts.into_iter().chain([(first_key, first)]);
        check_answers(client, customer, outcomes, stored).await?;
        Ok(())
    })
    .await
}

/// Checks that what was refused is not among the stored orders, and that what was left open ends.
async fn check_answers(
    client: &Client,
    customer: Uuid,
    outcomes: impl Iterator<Item = (String, Outcome)>,
    mut stored: HashSet<Uuid>,
) -> Result<()> {
    let mut refused = 0;
    for (key, outcome) in outcomes {
        if let Outcome::Refused(answer) = outcome {
            refused += 1;
            ensure!(answer.status == 503, "{answer}");
            continue;
        }
        ensure!(matches!(outcome, Outcome::Unknown(_)), "no standby has it: {outcome}");
        let again = async || client.place_order(customer, &basket(), &key).await;
        let order: Order = require_accepted(again).await?.json()?;
        stored.remove(&order.order_id);
        client.wait_until_ended(order.order_id, DRAIN_TIMEOUT).await?;
    }
    ensure!(stored.is_empty(), "nothing was stored, as their answers state: {stored:?}");
    ensure!(refused > 0, "no request was refused before its commit");
    Ok(())
}
