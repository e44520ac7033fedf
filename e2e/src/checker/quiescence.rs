//! Quiescence (I13): every order has ended, outboxes are empty and consumers have read every
//! record. The checker waits for it, and whatever is still pending at the deadline is a finding.

use std::time::{Duration, Instant};

use anyhow::Result;
use events::TOPICS;

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::I13;
use crate::checker::sources::Sources;
use crate::checker::waivers::Waivers;
use crate::client::kafka;
use crate::format::group_digits;
use crate::stack_description::SERVICES;

const POLL_INTERVAL: Duration = Duration::from_millis(250);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Work that was still pending at the deadline is a finding.
pub(crate) fn check(pending: Vec<String>, findings: &mut Findings) {
    for what in pending {
        findings.add(I13, "not quiescent", || what);
    }
}

impl Sources {
    /// Waits for quiescence. Returns the work that is still pending at the deadline.
    pub(crate) async fn wait_for_quiescence(
        &self,
        waivers: &Waivers,
        timeout: Duration,
    ) -> Result<Vec<String>> {
        let began = Instant::now();
        let mut reported_at = began;
        loop {
            let pending = self.pending_work(waivers).await?;
            if pending.is_empty() || began.elapsed() > timeout {
                return Ok(pending);
            }
            if reported_at.elapsed() > PROGRESS_INTERVAL {
                reported_at = Instant::now();
                eprintln!("waiting for quiescence: {} …", pending.join(", "));
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    async fn pending_work(&self, waivers: &Waivers) -> Result<Vec<String>> {
        let mut pending = Vec::new();
        let open: i64 = sqlx::query_scalar(
            "select count(*) from orders
             where not (status = 'confirmed' and payment = 'verified' and stock = 'reserved'
                     or status = 'cancelled' and payment in ('declined', 'refunded', 'void')
                                             and stock in ('rejected', 'released', 'void'))
               and order_id <> all($1)",
        )
        .bind(waivers.orders())
        .fetch_one(self.db("order"))
        .await?;
        if open > 0 {
            pending.push(format!("{} orders have not ended", group_digits(open)));
        }
        for service in SERVICES {
            let waiting: i64 = sqlx::query_scalar("select count(*) from chassis.outbox")
                .fetch_one(self.db(service))
                .await?;
            if waiting > 0 {
                pending.push(format!(
                    "{} events wait in the outbox of {service}",
                    group_digits(waiting)
                ));
            }
            let paused: Option<String> = sqlx::query_scalar(
                "select reason from chassis.consumer where paused_at is not null",
            )
            .fetch_optional(self.db(service))
            .await?
            .flatten();
            if let Some(reason) = paused {
                pending.push(format!("the consumer of {service} is paused: {reason}"));
            }
        }
        pending.extend(tokio::task::block_in_place(|| self.unread_records())?);
        Ok(pending)
    }

    fn unread_records(&self) -> Result<Vec<String>> {
        let mut lags = Vec::new();
        for topic in TOPICS {
            for service in topic.subscribers {
                let lag = kafka::lag(&self.groups[service], topic.name)?;
                if lag > 0 {
                    lags.push(format!(
                        "{service} has {} records of {} to handle",
                        group_digits(lag),
                        topic.name
                    ));
                }
            }
        }
        Ok(lags)
    }
}
