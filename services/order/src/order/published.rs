//! The events of an order. They are made of its row, when they are published and when they are republished: so both
//! are equal.

use chassis::{PublishedEvent, Republish};
use chrono::{DateTime, Utc};
use events::orders::{ConfirmedLine, OrderCancelled, OrderConfirmed, OrderCreated, OrderLine};

use super::{Line, Order, Reason};

impl Order {
    /// `orders.created`
    pub fn created(&self) -> OrderCreated {
        let line = |Line { sku, quantity, unit_price_cents }| OrderLine {
            sku,
            quantity,
            unit_price_cents,
        };
        OrderCreated {
            order_id: self.order_id,
            customer_id: self.customer_id,
            lines: self.lines.iter().cloned().map(line).collect(),
            total_cents: self.total_cents,
            currency: self.currency.clone(),
            also_asks: self.also_asks(),
            occurred_at: self.created_at,
        }
    }

    /// `orders.confirmed`
    pub fn confirmed(&self, occurred_at: DateTime<Utc>) -> OrderConfirmed {
        let line = |Line { sku, quantity, unit_price_cents }| ConfirmedLine {
            sku,
            quantity,
            unit_price_cents,
        };
        OrderConfirmed {
            order_id: self.order_id,
            customer_id: self.customer_id,
            lines: self.lines.iter().cloned().map(line).collect(),
            total_cents: self.total_cents,
            currency: self.currency.clone(),
            occurred_at,
        }
    }

    /// `orders.cancelled`
    pub fn cancelled(&self, reason: Reason, occurred_at: DateTime<Utc>) -> OrderCancelled {
        OrderCancelled { order_id: self.order_id, reason: reason.into(), occurred_at }
    }
}

impl Republish for Order {
    type Events = (OrderCreated, OrderConfirmed, OrderCancelled);

    fn published_events(&self) -> Vec<PublishedEvent> {
        let mut published =
            vec![PublishedEvent::new(self.created_event_id, self.created_at, &self.created())];
        if let (Some(event_id), Some(at)) = (self.ended_event_id, self.ended_at) {
            published.push(match self.reason {
                None => PublishedEvent::new(event_id, at, &self.confirmed(at)),
                Some(reason) => PublishedEvent::new(event_id, at, &self.cancelled(reason, at)),
            });
        }
        published
    }
}
