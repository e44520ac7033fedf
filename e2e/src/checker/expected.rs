//! The events that an order's rows record as published. `records.rs` compares them with the topics.

use chassis::event::Topic;
use chrono::{DateTime, Utc};
use events::{orders, payments, stock};
use uuid::Uuid;

use crate::checker::content_hash::{ContentHash, hash};
use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::I11;
use crate::checker::rows::{OrderCase, OrderRow, PaymentRow, ReservationRow};

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
    let mut expected = Expectations::default();
    if let Some(order) = &case.order {
        expected.add_order(order);
    }
    if let Some(payment) = &case.payment {
        expected.add_payment(payment);
    }
    if let Some(reservation) = &case.reservation {
        expected.add_reservation(reservation);
    }
    for topic in expected.unrecorded {
        findings
            .add(I11, "unrecorded", || format!("{}: no row records its {topic}", case.order_id));
    }
    expected.records
}

#[derive(Default)]
struct Expectations {
    records: Vec<ExpectedRecord>,
    /// The topics of events without an id in their row.
    unrecorded: Vec<&'static str>,
}

impl Expectations {
    fn add(
        &mut self,
        topic: &'static Topic,
        event_id: Option<Uuid>,
        content_hash: Option<u64>,
        decided_at: DateTime<Utc>,
    ) {
        match event_id {
            Some(event_id) => {
                self.records.push(ExpectedRecord { topic, event_id, content_hash, decided_at })
            }
            None => self.unrecorded.push(topic.name),
        }
    }

    fn add_order(&mut self, order: &OrderRow) {
        let OrderRow { customer_id, total_cents, currency, lines, .. } = order;
        let content = Some(ContentHash::order(*customer_id, *total_cents, currency, lines));
        self.add(&orders::CREATED, Some(order.created_event_id), content, order.created_at);
        let ended_at = order.ended_at.unwrap_or(order.created_at);
        match order.status.as_str() {
            "confirmed" => self.add(&orders::CONFIRMED, order.ended_event_id, content, ended_at),
            "cancelled" => {
                let content = order.reason.as_deref().map(ContentHash::reason);
                self.add(&orders::CANCELLED, order.ended_event_id, content, ended_at);
            }
            _ => {}
        }
    }

    fn add_payment(&mut self, payment: &PaymentRow) {
        let (answer, undo) = (payment.response_event_id, payment.compensation_event_id);
        let (answered_at, undone_at) = (payment.created_at, payment.updated_at);
        let currency = payment.currency.as_deref();
        let paid = Some(ContentHash::refund(Some(payment.amount_cents), currency));
        match payment.state.as_str() {
            "verified" => self.add(&payments::VERIFIED, answer, paid, answered_at),
            "declined" => {
                let content = payment.reason.as_deref().map(ContentHash::reason);
                self.add(&payments::DECLINED, answer, content, answered_at);
            }
            "refunded" => {
                self.add(&payments::VERIFIED, answer, paid, answered_at);
                self.add(&payments::REFUNDED, undo, paid, undone_at);
            }
            _ => {
                let nothing = Some(ContentHash::refund(None, None));
                self.add(&payments::REFUNDED, undo, nothing, undone_at);
            }
        }
    }

    fn add_reservation(&mut self, reservation: &ReservationRow) {
        let (answer, undo) = (reservation.response_event_id, reservation.compensation_event_id);
        let (answered_at, undone_at) = (reservation.created_at, reservation.updated_at);
        let lines = Some(ContentHash::lines(&reservation.lines));
        match reservation.state.as_str() {
            "reserved" => self.add(&stock::RESERVED, answer, lines, answered_at),
            "rejected" => {
                let content = reservation.shortfall.as_ref().map(hash);
                self.add(&stock::REJECTED, answer, content, answered_at);
            }
            "released" => {
                self.add(&stock::RESERVED, answer, lines, answered_at);
                self.add(&stock::RELEASED, undo, lines, undone_at);
            }
            _ => self.add(&stock::RELEASED, undo, Some(ContentHash::lines(&[])), undone_at),
        }
    }
}
