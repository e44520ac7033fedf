//! Quiescence (I13): every order has ended, outboxes are empty and consumers have read every
//! record. The checker waits for it. Everything that is still pending at the deadline is a finding.

use std::time::Duration;

use anyhow::Result;
use checker::{Sources, group_digits};

use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::I13;
use crate::checker::waivers::Waivers;

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
    let open_orders = async || {
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
        let open = (open > 0).then(|| format!("{} orders have not ended", group_digits(open)));
        Ok(Vec::from_iter(open))
    };
    sources.wait_for_quiescence(timeout, open_orders).await
}
