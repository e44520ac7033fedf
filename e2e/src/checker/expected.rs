//! The events that an order's rows record as published. `records.rs` compares them with the topics.

use chassis::event::Topic;
use chrono::{DateTime, Utc};
use events::{orders, payments, stock};
use uuid::Uuid;

use crate::checker::content_hash::{ContentHash, hash};
use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::I11;
use crate::checker::rows::{OrderCase, OrderRow};

/// An event that a row records as published.
pub struct ExpectedRecord {
    pub topic: &'static Topic,
    pub event_id: Uuid,
    pub content_hash: Option<u64>,
    pub decided_at: DateTime<Utc>,
}

/// The events that an order's rows record as published. A row without the id of an event that it
/// must have published is a finding.
pub fn expected_records(case: &OrderCase, findings: &mut Findings) -> Vec<ExpectedRecord> {
    let mut expected = Vec::with_capacity(6);
    let mut unrecorded = Vec::new();
    let mut expect = |topic: &'static Topic, event_id: Option<Uuid>, content, at| match event_id {
        Some(event_id) => {
            expected.push(ExpectedRecord { topic, event_id, content_hash: content, decided_at: at })
        }
        None => unrecorded.push(topic.name),
    };
    if let Some(order) = &case.order {
        let OrderRow { customer_id, total_cents, currency, lines, .. } = order;
        let content = Some(ContentHash::order(*customer_id, *total_cents, currency, lines));
        expect(&orders::CREATED, Some(order.created_event_id), content, order.created_at);
        let ended_at = order.ended_at.unwrap_or(order.created_at);
        match order.status.as_str() {
            "confirmed" => expect(&orders::CONFIRMED, order.ended_event_id, content, ended_at),
            "cancelled" => {
                let content = order.reason.as_deref().map(ContentHash::reason);
                expect(&orders::CANCELLED, order.ended_event_id, content, ended_at);
            }
            _ => {}
        }
    }
    if let Some(payment) = &case.payment {
        let (answer, undo) = (payment.response_event_id, payment.compensation_event_id);
        let (answered_at, undone_at) = (payment.created_at, payment.updated_at);
        let currency = payment.currency.as_deref();
        let paid = Some(ContentHash::refund(Some(payment.amount_cents), currency));
        match payment.state.as_str() {
            "verified" => expect(&payments::VERIFIED, answer, paid, answered_at),
            "declined" => {
                let content = payment.reason.as_deref().map(ContentHash::reason);
                expect(&payments::DECLINED, answer, content, answered_at);
            }
            "refunded" => {
                expect(&payments::VERIFIED, answer, paid, answered_at);
                expect(&payments::REFUNDED, undo, paid, undone_at);
            }
            _ => {
                expect(&payments::REFUNDED, undo, Some(ContentHash::refund(None, None)), undone_at)
            }
        }
    }
    if let Some(reservation) = &case.reservation {
        let (answer, undo) = (reservation.response_event_id, reservation.compensation_event_id);
        let (answered_at, undone_at) = (reservation.created_at, reservation.updated_at);
        let lines = Some(ContentHash::lines(&reservation.lines));
        match reservation.state.as_str() {
            "reserved" => expect(&stock::RESERVED, answer, lines, answered_at),
            "rejected" => {
                let content = reservation.shortfall.as_ref().map(hash);
                expect(&stock::REJECTED, answer, content, answered_at);
            }
            "released" => {
                expect(&stock::RESERVED, answer, lines, answered_at);
                expect(&stock::RELEASED, undo, lines, undone_at);
            }
            _ => expect(&stock::RELEASED, undo, Some(ContentHash::lines(&[])), undone_at),
        }
    }
    for topic in unrecorded {
        findings
            .add(I11, "unrecorded", || format!("{}: no row records its {topic}", case.order_id));
    }
    expected
}
