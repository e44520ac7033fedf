//! What still moves: orders that have not ended, rows in outboxes, records that nobody read yet. A
//! checker waits for all of it to come to rest, and what does not in time is a finding.

use std::time::{Duration, Instant};

use anyhow::Result;
use events::TOPICS;

use crate::discarded::Discarded;
use crate::figures::grouped;
use crate::findings::Findings;
use crate::invariants::Invariant::I13;
use crate::topics;
use crate::topology::SERVICES;
use crate::verify::Reading;

const LOOK_EVERY: Duration = Duration::from_millis(250);
const SAY_EVERY: Duration = Duration::from_secs(5);

/// What still moved when the time was up.
pub(crate) fn check(restless: Vec<String>, findings: &mut Findings) {
    for what in restless {
        findings.add(I13, "unrest", || what);
    }
}

impl Reading {
    /// Waits until nothing moves any more. Answers what still does when the time is up.
    pub(crate) async fn rest(
        &self,
        discarded: &Discarded,
        within: Duration,
    ) -> Result<Vec<String>> {
        let began = Instant::now();
        let mut said = began;
        loop {
            let restless = self.restless(discarded).await?;
            if restless.is_empty() || began.elapsed() > within {
                return Ok(restless);
            }
            if said.elapsed() > SAY_EVERY {
                said = Instant::now();
                eprintln!("waiting for rest: {} …", restless.join(", "));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn restless(&self, discarded: &Discarded) -> Result<Vec<String>> {
        let mut restless = Vec::new();
        let open: i64 = sqlx::query_scalar(
            "select count(*) from orders
             where not (status = 'confirmed' and payment = 'verified' and stock = 'reserved'
                     or status = 'cancelled' and payment in ('declined', 'refunded', 'void')
                                             and stock in ('rejected', 'released', 'void'))
               and order_id <> all($1)",
        )
        .bind(discarded.orders())
        .fetch_one(self.db("order"))
        .await?;
        if open > 0 {
            restless.push(format!("{} orders have not ended", grouped(open)));
        }
        for service in SERVICES {
            let waiting: i64 = sqlx::query_scalar("select count(*) from outbox")
                .fetch_one(self.db(service))
                .await?;
            if waiting > 0 {
                restless
                    .push(format!("{} events wait in the outbox of {service}", grouped(waiting)));
            }
            let paused: Option<String> =
                sqlx::query_scalar("select reason from consumer where paused_at is not null")
                    .fetch_optional(self.db(service))
                    .await?
                    .flatten();
            if let Some(reason) = paused {
                restless.push(format!("the consumer of {service} is paused: {reason}"));
            }
        }
        restless.extend(tokio::task::block_in_place(|| self.lags())?);
        Ok(restless)
    }

    fn lags(&self) -> Result<Vec<String>> {
        let mut lags = Vec::new();
        for topic in TOPICS {
            for service in topic.subscribers {
                let lag = topics::lag(&self.groups[service], topic.name)?;
                if lag > 0 {
                    lags.push(format!(
                        "{service} has {} records of {} to read",
                        grouped(lag),
                        topic.name
                    ));
                }
            }
        }
        Ok(lags)
    }
}
