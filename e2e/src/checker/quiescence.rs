//! Quiescence (I13): every order has ended, outboxes are empty and consumers have read every
//! record. The checker waits for it. Everything that is still pending at the deadline is a finding.

use std::time::{Duration, Instant};

use anyhow::Result;
use checker::{LogEnds, Sources, group_digits};

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::I13;
use crate::checker::waivers::Waivers;

const POLL_INTERVAL: Duration = Duration::from_millis(250);
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Work that was still pending at the deadline is a finding.
pub(crate) fn check(pending: Vec<String>, findings: &mut Findings) {
    for what in pending {
        findings.add(I13, "not quiescent", || what);
    }
}

/// Waits for quiescence. Returns the work that is still pending at the deadline.
pub(crate) async fn wait(
    sources: &Sources,
    waivers: &Waivers,
    timeout: Duration,
) -> Result<Vec<String>> {
    let began = Instant::now();
    let mut reported_at = began;
    // What a connector carries when nothing else is pending.
    let mut captured: Option<LogEnds> = None;
    loop {
        let mut pending = pending_work(sources, waivers).await?;
        if pending.is_empty() {
            let ends = match captured.take() {
                None => sources.log_ends().await?,
                Some(ends) => ends,
            };
            pending = sources.undelivered(&ends).await?;
            captured = Some(ends);
        } else {
            captured = None;
        }
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

async fn pending_work(sources: &Sources, waivers: &Waivers) -> Result<Vec<String>> {
    let mut pending = Vec::new();
    let open: i64 = sqlx::query_scalar(
        "select count(*) from orders
         where not (status = 'confirmed' and payment = 'verified' and stock = 'reserved'
                 or status = 'cancelled' and payment in ('declined', 'refunded', 'void')
                                         and stock in ('rejected', 'released', 'void'))
           and order_id <> all($1)",
    )
    .bind(waivers.orders())
    .fetch_one(sources.db("order"))
    .await?;
    if open > 0 {
        pending.push(format!("{} orders have not ended", group_digits(open)));
    }
    pending.extend(sources.pending_messages().await?);
    Ok(pending)
}
