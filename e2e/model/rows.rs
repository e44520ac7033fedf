//! Rows and events, built from the compact state of an order.

use chassis::{Command, HandlerContext};
use chrono::DateTime;
use events::orders::{self, CancelReason, OrderCancelled, OrderConfirmed, OrderCreated};
use events::participants::{ASKED_BY_EVERY_ORDER, participants};
use order::{LineRequest, Orders, PlaceOrder};
use uuid::Uuid;

/// All orders are alike, so one set of ids and values serves them all.
pub const ORDER: Uuid = Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_89ab_0001);
pub const CUSTOMER: Uuid = Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_89ab_0002);
pub const PUBLISHED_EVENT_ID: Uuid = Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_89ab_0003);
pub const RECEIVED_EVENT_ID: Uuid = Uuid::from_u128(0x0193_4a5b_6c7d_7e8f_8123_4567_89ab_0004);
pub const SKU: &str = "pen";
pub const TOTAL_CENTS: i64 = 150;

/// Far more units than there are, for the mutant that does not check the available ones.
pub const PLENTY: i8 = 100;

// Rows, built from the compact state of an order.

pub fn context() -> HandlerContext {
    HandlerContext {
        now: DateTime::UNIX_EPOCH,
        event_id: PUBLISHED_EVENT_ID,
        causation_id: Some(RECEIVED_EVENT_ID),
    }
}

pub fn euros() -> String {
    "EUR".into()
}

pub fn place_order() -> (Orders, OrderCreated) {
    let mut rows = Orders::default();
    let (sku, name) = (SKU.to_string(), "Pen".to_string());
    rows.put_item(order::Item {
        sku,
        name,
        price_cents: TOTAL_CENTS,
        currency: euros(),
        version: 1,
    });
    let lines = vec![LineRequest { sku: SKU.into(), quantity: 1 }];
    let further = participants().into_iter().skip(ASKED_BY_EVERY_ORDER);
    let further = further.map(|it| it.service.to_owned());
    let (order_id, customer_id, also_asks) = (ORDER, CUSTOMER, further.collect());
    let place = PlaceOrder { order_id, customer_id, lines, also_asks, deadline: None };
    let context = HandlerContext { causation_id: None, ..context() };
    let (created, _) = place.decide(&mut rows, context).unwrap().event.unwrap();
    (rows, created)
}

// Events, as the model delivers them to subscribers.

pub fn created() -> OrderCreated {
    place_order().1
}

pub fn cancelled() -> OrderCancelled {
    OrderCancelled { order_id: ORDER, reason: CancelReason::Customer, occurred_at: context().now }
}

pub fn confirmed() -> OrderConfirmed {
    let line =
        orders::ConfirmedLine { sku: SKU.into(), quantity: 1, unit_price_cents: TOTAL_CENTS };
    OrderConfirmed {
        order_id: ORDER,
        customer_id: CUSTOMER,
        lines: vec![line],
        total_cents: TOTAL_CENTS,
        currency: euros(),
        occurred_at: context().now,
    }
}
