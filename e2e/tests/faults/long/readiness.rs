//! Readiness under load.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::future::join_all;
use sqlx::{Connection, PgConnection};

use super::*;

const CLIENTS: usize = 100;
const LOCK_DURATION: Duration = Duration::from_secs(15);

/// R16. An orchestrator takes a replica out after three such probes, and here it would be all of them.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs two of each service: make faults"]
async fn a_table_that_is_locked_under_load_turns_no_replica_unready() -> Result<()> {
    with_exclusive_fixture(async |fixture| {
        start_two_of_each(fixture).await?;
        let Fixture { stack, .. } = fixture;
        let mut db = PgConnection::connect(&stack.database_url("order")?).await?;
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        let over = AtomicBool::new(false);
        let is_over = || over.load(Ordering::Relaxed);
        let names = stack.instances_of("order")?;
        ensure!(names.len() == 2, "{names:?}");
        let (mut clients, mut probes) = (Vec::new(), Vec::new());
        for name in &names {
            let list = format!("{}/orders?customer_id={}", stack.url(name)?, rich_customer());
            let ready = format!("{}/readyz", stack.probe_url(name)?);
            for _ in 0..CLIENTS {
                let (http, list) = (&http, list.clone());
                clients.push(async move {
                    let mut refused = 0;
                    while !is_over() {
                        let answer = http.get(&list).send().await?;
                        refused += usize::from(answer.status() == 503);
                    }
                    anyhow::Ok(refused)
                });
            }
            let http = &http;
            probes.push(async move {
                let mut answers = Vec::new();
                while !is_over() {
                    answers.push(http.get(&ready).send().await?.status().as_u16());
                    sleep(Duration::from_millis(700)).await;
                }
                anyhow::Ok(answers)
            });
        }
        let lock = async {
            let mut tx = db.begin().await?;
            sqlx::query("lock table orders in access exclusive mode").execute(&mut *tx).await?;
            sleep(LOCK_DURATION).await;
            tx.rollback().await?;
            over.store(true, Ordering::Relaxed);
            anyhow::Ok(())
        };
        let (locked, clients, probes) = tokio::join!(lock, join_all(clients), join_all(probes));
        locked?;
        let refused: usize = clients.into_iter().collect::<Result<Vec<_>>>()?.iter().sum();
        ensure!(refused > CLIENTS, "only {refused} were refused: no client was delayed");
        for (name, answers) in names.iter().zip(probes) {
            let answers = answers?;
            let twice = answers.windows(2).any(|pair| pair == [503, 503]);
            ensure!(!twice, "{name} was unready: {answers:?}");
            ensure!(answers.len() >= 10, "{name} was probed {} times", answers.len());
        }
        Ok(())
    })
    .await
}
