//! Rows and events, built from the compact state of an order.

use chassis::event::Outgoing;
use chassis::{Command, Event, HandlerContext};
use chrono::DateTime;
use events::orders::{self, CancelReason, OrderCancelled, OrderConfirmed, OrderCreated};
use events::payments::{DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified};
use events::stock::{
    RejectReason, ReleasedLine, ReservedLine, StockRejected, StockReleased, StockReserved,
};
use order::{LineRequest, Order, Orders, PlaceOrder, Reason, Status};
use payment::{Deposit, Ledger, Payment};
use sqlx::types::Json;
use stock::{Item, Reservation, Shortfall, Warehouse};
use uuid::Uuid;

use crate::world::{EventKind, EventKind::*, OrderState};

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

pub fn orders_from(placed: &OrderState) -> Orders {
    let mut rows = place_order().0;
    let ended = placed.status != Status::Pending;
    rows.put_order(Order {
        status: placed.status,
        reason: (placed.status == Status::Cancelled).then_some(Reason::Customer),
        payment: placed.payment_leg,
        stock: placed.stock_leg,
        ended_at: ended.then_some(context().now),
        ended_event_id: ended.then_some(PUBLISHED_EVENT_ID),
        ..rows.order(ORDER).unwrap().clone()
    });
    rows
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
    let place = PlaceOrder { order_id: ORDER, customer_id: CUSTOMER, lines };
    let context = HandlerContext { causation_id: None, ..context() };
    let created = place.decide(&mut rows, context).unwrap().event.unwrap();
    (rows, created)
}

pub fn totals_charged(placed: &OrderState) -> i64 {
    i64::from(placed.charges) - i64::from(placed.refunds)
}

pub fn ledger_from(placed: &OrderState, funded: bool) -> Ledger {
    let mut rows = Ledger::default();
    let taken_cents = totals_charged(placed) * TOTAL_CENTS;
    let amount_cents = taken_cents + if funded { TOTAL_CENTS } else { 0 };
    let deposit = Deposit {
        deposit_id: PUBLISHED_EVENT_ID,
        customer_id: CUSTOMER,
        amount_cents,
        currency: euros(),
    };
    rows.deposit(&deposit, context().now);
    rows.debit(CUSTOMER, taken_cents);
    if let Some(state) = placed.payment {
        use payment::State::{Declined, Refunded, Void};
        let void = state == Void;
        rows.put_payment(Payment {
            order_id: ORDER,
            state,
            customer_id: (!void).then_some(CUSTOMER),
            amount_cents: if void { 0 } else { TOTAL_CENTS },
            currency: (!void).then(euros),
            reason: (state == Declined).then_some(payment::Reason::InsufficientFunds),
            response_event_id: (!void).then_some(PUBLISHED_EVENT_ID),
            compensation_event_id: matches!(state, Refunded | Void).then_some(PUBLISHED_EVENT_ID),
            created_at: context().now,
            updated_at: context().now,
        });
    }
    rows
}

pub fn warehouse_from(placed: &OrderState, available: i8, units: i8) -> Warehouse {
    let mut rows = Warehouse::default();
    rows.put_item(Item {
        sku: SKU.into(),
        name: "Pen".into(),
        price_cents: TOTAL_CENTS,
        currency: euros(),
        version: 1,
        delivered: units.into(),
        available: available.into(),
        reserved: i64::from(units) - i64::from(available),
        event_id: PUBLISHED_EVENT_ID,
        changed_at: context().now,
    });
    if let Some(state) = placed.reservation {
        use stock::State::{Rejected, Released, Reserved, Void};
        let line = stock::Line { sku: SKU.into(), quantity: 1 };
        rows.put_reservation(Reservation {
            order_id: ORDER,
            state,
            lines: Json(if matches!(state, Reserved | Released) { vec![line] } else { vec![] }),
            shortfall: (state == Rejected).then(|| {
                let (reason, sku) = (RejectReason::OutOfStock, SKU.into());
                Json(Shortfall { reason, sku, requested: 1, available: 0 })
            }),
            reason: (state == Rejected).then(|| "1 of pen ordered, 0 available".into()),
            response_event_id: (state != Void).then_some(PUBLISHED_EVENT_ID),
            compensation_event_id: matches!(state, Released | Void).then_some(PUBLISHED_EVENT_ID),
            created_at: context().now,
            updated_at: context().now,
        });
    }
    rows
}

// Events, as the model delivers them to subscribers.

pub fn created() -> OrderCreated {
    place_order().1
}

pub fn cancelled() -> OrderCancelled {
    OrderCancelled { order_id: ORDER, reason: CancelReason::Customer, occurred_at: context().now }
}

pub fn verified() -> PaymentVerified {
    let (amount_cents, currency) = (TOTAL_CENTS, euros());
    PaymentVerified { order_id: ORDER, amount_cents, currency, occurred_at: context().now }
}

pub fn declined() -> PaymentDeclined {
    let reason = DeclineReason::InsufficientFunds;
    PaymentDeclined { order_id: ORDER, reason, occurred_at: context().now }
}

pub fn refunded(something: bool) -> PaymentRefunded {
    let (amount_cents, currency) = (something.then_some(TOTAL_CENTS), something.then(euros));
    PaymentRefunded { order_id: ORDER, amount_cents, currency, occurred_at: context().now }
}

pub fn reserved() -> StockReserved {
    let lines = vec![ReservedLine { sku: SKU.into(), quantity: 1 }];
    StockReserved { order_id: ORDER, lines, occurred_at: context().now }
}

pub fn rejected() -> StockRejected {
    let (reason, sku, requested, available) = (RejectReason::OutOfStock, SKU.into(), 1, 0);
    StockRejected { order_id: ORDER, reason, sku, requested, available, occurred_at: context().now }
}

pub fn released(something: bool) -> StockReleased {
    let line = ReleasedLine { sku: SKU.into(), quantity: 1 };
    let lines = if something { vec![line] } else { vec![] };
    StockReleased { order_id: ORDER, lines, occurred_at: context().now }
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

pub fn sample(kind: EventKind) -> Vec<u8> {
    fn body(event: impl Event) -> Vec<u8> {
        Outgoing::from_event(&event).body
    }
    match kind {
        Created => body(created()),
        Verified => body(verified()),
        Declined => body(declined()),
        Refunded | PaymentVoid => body(refunded(kind == Refunded)),
        Reserved => body(reserved()),
        Rejected => body(rejected()),
        Released | StockVoid => body(released(kind == Released)),
        Cancelled => body(cancelled()),
        Confirmed => body(confirmed()),
    }
}
