//! The checker on a stack: the events of every topic are compared with the rows.

use anyhow::Result;
use e2e::checker::coverage::Coverage;
use e2e::workload::plan::QUANTITY_ORDERED_MAX;
use e2e::workload::seed;
use events::participants::participants;

use crate::fixture::*;

/// One query of the checker for each topic states what must be in the topic. It proves nothing in a run in
/// which the topic has no record.
#[tokio::test(flavor = "multi_thread")]
async fn the_checker_compares_a_record_of_every_topic_with_its_row() -> Result<()> {
    with_unverified_fixture(async |fixture| {
        let client = &fixture.client;
        let too_many = line(seed::SCARCE_ITEM.sku, seed::SCARCE_ITEM.delivered_quantity + 1);
        for (customer, lines, reason) in [
            (rich_customer(), basket(), None),
            (seed::POOR_CUSTOMER.customer_id, basket(), Some("payment_declined")),
            (rich_customer(), vec![too_many], Some("stock_rejected")),
        ] {
            let placed = client.place_until_accepted(customer, &lines).await?;
            let order = client.wait_until_ended(placed.order_id, TIMEOUT).await?;
            assert_eq!(order.reason.as_deref(), reason, "{order:?}");
        }
        // A participant that joined later may object to its total, for a customer who has no money.
        let lines = [line(seed::SCARCE_ITEM.sku, QUANTITY_ORDERED_MAX)];
        let customer_id = seed::POOR_CUSTOMER.customer_id;
        let placed = client.place_until_accepted(customer_id, &lines).await?;
        client.wait_until_ended(placed.order_id, TIMEOUT).await?;
        let verdict = fixture.verify().await?;
        let coverage = Coverage::from_verdict(&verdict, 0);
        let mut uncompared = coverage.uncompared_topics();
        // A participant that may refuse to undo does so by a rule of its own: `faults::long::participant` makes it.
        let refusals = participants().map(|it| it.undo_refused.map_or("", |topic| topic.name));
        uncompared.retain(|topic| !refusals.contains(topic) && !topic.starts_with("shipments."));
        assert_eq!(uncompared, [""; 0]);
        Ok(())
    })
    .await
}
