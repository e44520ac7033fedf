//! What the service publishes: `shop.accepted`, once for each purchase.

use chassis::{PublishedEvent, Republish, RepublishSource};
use events::PurchaseAccepted;

use crate::purchases::ConfirmedPurchase;

/// What a handler publishes.
pub type Published = PurchaseAccepted;

impl ConfirmedPurchase {
    /// The event about this purchase.
    pub fn published(&self) -> Option<Published> {
        Some(PurchaseAccepted { purchase_id: self.purchase_id, occurred_at: self.recorded_at })
    }
}

impl Republish for ConfirmedPurchase {
    type Events = PurchaseAccepted;

    fn published_events(&self) -> Vec<PublishedEvent> {
        let event = self.published();
        let event = event.map(|it| PublishedEvent::new(self.event_id, self.recorded_at, &it));
        event.into_iter().collect()
    }
}

/// The rows from which events are republished.
pub fn sources() -> [RepublishSource; 1] {
    [ConfirmedPurchase::source()]
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use events::purchases::PurchaseConfirmed;
    use serde_json::json;
    use testing::TestService;
    use uuid::Uuid;

    use super::*;
    use crate::purchases::Purchases;
    use crate::saga;

    #[tokio::test]
    async fn a_purchase_is_published_once_and_republished_as_it_was() {
        let fixture = TestService::<Purchases>::new("shop", sqlx::migrate!()).await;
        let (event_id, purchase_id) = (Uuid::now_v7(), Uuid::from_u128(7));
        let purchase = PurchaseConfirmed {
            purchase_id,
            customer_id: Uuid::max(),
            lines: Vec::new(),
            total_cents: 0,
            currency: "EUR".into(),
            occurred_at: DateTime::UNIX_EPOCH,
        };
        for event_id in [event_id, event_id, Uuid::now_v7()] {
            fixture.deliver(&[(event_id, &purchase)], saga::record_confirmed).await.unwrap();
        }
        let published = fixture.published::<PurchaseAccepted>().await;
        assert_eq!(published.iter().map(|it| it.purchase_id).collect::<Vec<_>>(), [purchase_id]);
        let before = fixture.outbox_records().await;
        let (_, again) = fixture.republished(sources(), json!({})).await;
        assert_eq!(again, before);
    }
}
