//! Quiescence (I13): every order has ended, outboxes are empty and consumers have read every
//! record. The checker waits for it. Everything that is still pending at the deadline is a finding.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use checker::{Sources, group_digits};
use events::participants::{WAITING, leg_state, participants};
use sqlx::AssertSqlSafe;

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::I13;
use crate::checker::shipments;
use crate::checker::waivers::Waivers;

/// Work that was still pending at the deadline is a finding.
pub(crate) fn check(pending: Vec<String>, findings: &mut Findings) {
    for what in pending {
        findings.add(I13, "not quiescent", || what);
    }
}

/// Waits for quiescence.
pub(crate) async fn require(
    sources: &Sources,
    waivers: &Waivers,
    ledger: Option<&Path>,
    timeout: Duration,
    findings: &mut Findings,
) -> Result<()> {
    let open = participants().map(|answers| {
        format!(" or {} in ('{WAITING}', '{}')", answers.service, leg_state(answers.accepted))
    });
    let open_orders = format!(
        "select count(*) from orders
         where (status = 'pending' or status = 'cancelled' and (false{})) and order_id <> all($1)",
        open.concat()
    );
    let open_orders = async || {
        let open: i64 = sqlx::query_scalar(AssertSqlSafe(open_orders.as_str()))
            .bind(waivers.orders())
            .fetch_one(sources.db("order"))
            .await?;
        let open = (open > 0).then(|| format!("{} orders have not ended", group_digits(open)));
        let mut open = Vec::from_iter(open);
        open.extend(shipments::under_way(sources, ledger).await?);
        Ok(open)
    };
    check(sources.wait_for_quiescence(timeout, open_orders).await?, findings);
    Ok(())
}
