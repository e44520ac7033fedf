//! What must hold of an order, as pure functions over its rows in three databases, its history and
//! its records. Each violation is refused by the check that is meant for it, which the tests below
//! show with hand-made rows. [`crate::arrivals`] holds the rows against the records.

use std::collections::{BTreeMap, BTreeSet};

use chassis::event::Topic;
use chrono::{DateTime, Utc};
use events::{orders, payments, stock};
use serde_json::Value;
use uuid::Uuid;

use crate::arrivals::check_facts;
use crate::audit::{self, Standing};
use crate::facts::{Fact, Letters, Line, OrderLine, Says, Shortfall, hash};
use crate::findings::Findings;
use crate::invariants::Invariant::{I3, I4, I5, I6, I7, I11};

/// A row of order's table.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct OrderRow {
    pub order_id: Uuid,
    pub customer_id: Uuid,
    pub status: String,
    pub reason: Option<String>,
    pub payment: String,
    pub stock: String,
    pub total_cents: i64,
    pub currency: String,
    #[sqlx(json)]
    pub lines: Vec<OrderLine>,
    pub created_at: DateTime<Utc>,
    pub ended_at: Option<DateTime<Utc>>,
    pub created_event_id: Uuid,
    pub ended_event_id: Option<Uuid>,
}

impl OrderRow {
    fn cancelled_event_id(&self) -> Option<Uuid> {
        self.ended_event_id.filter(|_| self.status == "cancelled")
    }
}

/// A row of payment's table.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct PaymentRow {
    pub order_id: Uuid,
    pub state: String,
    pub customer_id: Option<Uuid>,
    pub amount_cents: i64,
    pub currency: Option<String>,
    pub reason: Option<String>,
    pub answer_event_id: Option<Uuid>,
    pub undo_event_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// A row of stock's table.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct ReservationRow {
    pub order_id: Uuid,
    pub state: String,
    #[sqlx(json)]
    pub lines: Vec<Line>,
    #[sqlx(json(nullable))]
    pub shortfall: Option<Shortfall>,
    pub answer_event_id: Option<Uuid>,
    pub undo_event_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// A row of order's history.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct HistoryRow {
    pub order_id: Uuid,
    pub event_id: Uuid,
    pub position: i64,
    pub event: String,
    pub detail: Value,
    pub occurred_at: DateTime<Utc>,
}

/// Everything that is known of one order.
#[derive(Clone, Debug, Default)]
pub struct Case {
    pub order_id: Uuid,
    pub order: Option<OrderRow>,
    pub payment: Option<PaymentRow>,
    pub reservation: Option<ReservationRow>,
    pub history: Vec<HistoryRow>,
    pub facts: Vec<Fact>,
}

/// An event that a row says was published.
pub struct Expected {
    pub topic: &'static Topic,
    pub event_id: Uuid,
    pub content: Option<u64>,
    pub at: DateTime<Utc>,
}

/// What the checks need to know beside an order's case.
pub struct Around<'a> {
    pub letters: &'a Letters,
    /// Older events may be gone from their topics.
    pub kept_since: DateTime<Utc>,
    /// How far the clocks of the brokers may be apart, in milliseconds.
    pub clocks_apart_ms: i64,
}

/// What the cases come to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tally {
    pub pending: u64,
    pub confirmed: u64,
    pub confirmed_cents: i128,
    /// By reason.
    pub cancelled: BTreeMap<String, u64>,
    /// By payment's and stock's word for it.
    pub payments: BTreeMap<String, u64>,
    pub reservations: BTreeMap<String, u64>,
    pub facts: u64,
    /// By reason (none where it was confirmed), payment and stock: each way that an order ended.
    pub endings: BTreeMap<[String; 3], u64>,
    /// Records of an event that lie there a second time, though nobody had it announced again; and
    /// how many of them somebody heard.
    pub repeats: u64,
    pub repeats_heard: u64,
    /// Orders that heard a yes after they were cancelled.
    pub late_yeses: u64,
    /// Events that a service has still to answer, by service: where its inbox has one of them, it was
    /// entered and had no effect.
    pub unanswered: BTreeSet<(&'static str, Uuid)>,
    /// Confirmed orders whose four records are one trace.
    pub traced: u64,
    /// Well-formed records that no row recorded and a dead letter names.
    pub set_aside: u64,
    /// Events too old to be still in their topics.
    pub expired: u64,
}

/// Checks one order against everything that is known of it.
pub fn check_case(case: &Case, around: &Around<'_>, tally: &mut Tally, findings: &mut Findings) {
    if let Some(order) = &case.order {
        check_order(order, case, tally, findings);
        check_audit(order, case, tally, findings);
    } else if case.payment.is_some() || case.reservation.is_some() || !case.history.is_empty() {
        findings.add(I11, "ghost", || {
            format!("{}: payment or stock has it, order does not", case.order_id)
        });
    }
    if let Some(payment) = &case.payment {
        *tally.payments.entry(payment.state.clone()).or_default() += 1;
    }
    if let Some(reservation) = &case.reservation {
        *tally.reservations.entry(reservation.state.clone()).or_default() += 1;
    }
    let expected = expected(case, findings);
    check_history(case, &expected, findings);
    check_facts(case, &expected, around, tally, findings);
}

fn check_order(order: &OrderRow, case: &Case, tally: &mut Tally, findings: &mut Findings) {
    let id = order.order_id;
    let total: i128 = order
        .lines
        .iter()
        .map(|line| i128::from(line.quantity) * i128::from(line.unit_price_cents))
        .sum();
    findings.unless(total == i128::from(order.total_cents), I5, "amounts", || {
        format!("{id}: its lines come to {total}, its total is {}", order.total_cents)
    });
    let payment = case.payment.as_ref().map_or("waiting", |payment| &payment.state);
    let stock = case.reservation.as_ref().map_or("waiting", |reservation| &reservation.state);
    let legs =
        || format!("{id}: {}, payment {}, stock {}", order.status, order.payment, order.stock);
    match order.status.as_str() {
        "confirmed" => {
            tally.confirmed += 1;
            tally.confirmed_cents += i128::from(order.total_cents);
            let both = order.payment == "verified" && order.stock == "reserved";
            findings.unless(both, I3, "open", legs);
        }
        "cancelled" => {
            *tally.cancelled.entry(order.reason.clone().unwrap_or_default()).or_default() += 1;
            let paid = ["refunded", "declined", "void"].contains(&order.payment.as_str());
            let held = ["released", "rejected", "void"].contains(&order.stock.as_str());
            findings.unless(paid && held, I3, "open", legs);
        }
        _ => {
            tally.pending += 1;
            findings.add(I3, "open", legs);
        }
    }
    if order.status != "pending" {
        let ending = [order.reason.clone().unwrap_or_default(), payment.into(), stock.into()];
        *tally.endings.entry(ending).or_default() += 1;
    }
    findings.unless(order.payment == payment, I4, "disagreement", || {
        format!("{id}: order says payment is {}, payment says {payment}", order.payment)
    });
    findings.unless(order.stock == stock, I4, "disagreement", || {
        format!("{id}: order says stock is {}, stock says {stock}", order.stock)
    });
    for (service, state) in [("payment", payment), ("stock", stock)] {
        let heard = match state {
            "waiting" => [Some(order.created_event_id), order.cancelled_event_id()],
            "verified" | "reserved" => [order.cancelled_event_id(), None],
            _ => [None; 2],
        };
        tally.unanswered.extend(heard.into_iter().flatten().map(|event_id| (service, event_id)));
    }
    if let Some(payment) = &case.payment {
        check_payment(order, payment, findings);
    }
    if let Some(reservation) = &case.reservation {
        check_reservation(order, reservation, findings);
    }
}

fn check_payment(order: &OrderRow, payment: &PaymentRow, findings: &mut Findings) {
    let id = order.order_id;
    if ["verified", "refunded"].contains(&payment.state.as_str()) {
        let taken = (payment.amount_cents, payment.currency.as_deref());
        let due = (order.total_cents, Some(order.currency.as_str()));
        findings.unless(taken == due, I5, "amounts", || {
            format!("{id}: payment took {taken:?}, the order is about {due:?}")
        });
        findings.unless(payment.customer_id == Some(order.customer_id), I5, "amounts", || {
            format!(
                "{id}: payment took it from {:?}, not from {}",
                payment.customer_id, order.customer_id
            )
        });
    } else if payment.state == "void" {
        findings.unless(payment.amount_cents == 0, I5, "amounts", || {
            format!("{id}: payment is void and about {} cents", payment.amount_cents)
        });
    }
}

fn check_reservation(order: &OrderRow, reservation: &ReservationRow, findings: &mut Findings) {
    let id = order.order_id;
    let ordered = order.lines.iter().map(|line| (line.sku.as_str(), line.quantity));
    let same = match reservation.state.as_str() {
        "reserved" | "released" => Says::lines(&reservation.lines) == Says::set_aside(ordered),
        _ => true,
    };
    findings.unless(same, I6, "lines", || {
        format!("{id}: stock set aside {:?}, ordered were {:?}", reservation.lines, order.lines)
    });
}

/// The events that the rows of an order say were published. A row that ought to say so and does not
/// is a finding.
pub fn expected(case: &Case, findings: &mut Findings) -> Vec<Expected> {
    let mut expected = Vec::with_capacity(6);
    let mut unrecorded = Vec::new();
    let mut expect = |topic: &'static Topic, event_id: Option<Uuid>, content, at| match event_id {
        Some(event_id) => expected.push(Expected { topic, event_id, content, at }),
        None => unrecorded.push(topic.name),
    };
    if let Some(order) = &case.order {
        let OrderRow { customer_id, total_cents, currency, lines, .. } = order;
        let content = Some(Says::ordered(*customer_id, *total_cents, currency, lines));
        expect(&orders::CREATED, Some(order.created_event_id), content, order.created_at);
        let ended_at = order.ended_at.unwrap_or(order.created_at);
        match order.status.as_str() {
            "confirmed" => expect(&orders::CONFIRMED, order.ended_event_id, content, ended_at),
            "cancelled" => {
                let content = order.reason.as_deref().map(Says::cancelled);
                expect(&orders::CANCELLED, order.ended_event_id, content, ended_at);
            }
            _ => {}
        }
    }
    if let Some(payment) = &case.payment {
        let (answer, undo) = (payment.answer_event_id, payment.undo_event_id);
        let (answered_at, undone_at) = (payment.created_at, payment.updated_at);
        let currency = payment.currency.as_deref();
        let paid = Some(Says::refunded(Some(payment.amount_cents), currency));
        match payment.state.as_str() {
            "verified" => expect(&payments::VERIFIED, answer, paid, answered_at),
            "declined" => {
                let content = payment.reason.as_deref().map(Says::cancelled);
                expect(&payments::DECLINED, answer, content, answered_at);
            }
            "refunded" => {
                expect(&payments::VERIFIED, answer, paid, answered_at);
                expect(&payments::REFUNDED, undo, paid, undone_at);
            }
            _ => expect(&payments::REFUNDED, undo, Some(Says::refunded(None, None)), undone_at),
        }
    }
    if let Some(reservation) = &case.reservation {
        let (answer, undo) = (reservation.answer_event_id, reservation.undo_event_id);
        let (answered_at, undone_at) = (reservation.created_at, reservation.updated_at);
        let lines = Some(Says::lines(&reservation.lines));
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
            _ => expect(&stock::RELEASED, undo, Some(Says::lines(&[])), undone_at),
        }
    }
    for topic in unrecorded {
        findings
            .add(I11, "unrecorded", || format!("{}: no row records its {topic}", case.order_id));
    }
    expected
}

/// The order's history has exactly what its rows say happened: nothing twice, nothing else.
fn check_history(case: &Case, expected: &[Expected], findings: &mut Findings) {
    if case.order.is_none() {
        return;
    }
    let id = case.order_id;
    let mut should: Vec<(Uuid, &str)> =
        expected.iter().map(|e| (e.event_id, e.topic.name)).collect();
    let mut is: Vec<(Uuid, &str)> =
        case.history.iter().map(|row| (row.event_id, row.event.as_str())).collect();
    should.sort_unstable();
    is.sort_unstable();
    for row in &should {
        findings
            .unless(is.contains(row), I7, "history", || format!("{id}: lacks {} {}", row.1, row.0));
    }
    for row in &is {
        findings.unless(should.contains(row), I7, "history", || {
            format!("{id}: has {} {}, which nobody recorded", row.1, row.0)
        });
    }
    findings.unless(is.windows(2).all(|pair| pair[0].0 != pair[1].0), I7, "history", || {
        format!("{id}: has an event twice")
    });
}

/// The history, folded, comes to where the order stands.
fn check_audit(order: &OrderRow, case: &Case, tally: &mut Tally, findings: &mut Findings) {
    let mut history: Vec<&HistoryRow> = case.history.iter().collect();
    history.sort_unstable_by_key(|row| row.position);
    let since_cancelled = history.iter().skip_while(|row| row.event != orders::CANCELLED.name);
    let yeses = [payments::VERIFIED.name, stock::RESERVED.name];
    let is_late = since_cancelled.clone().any(|row| yeses.contains(&row.event.as_str()));
    tally.late_yeses += u64::from(is_late);
    let lines = history.iter().map(|row| audit::Line {
        event: &row.event,
        detail: &row.detail,
        occurred_at: row.occurred_at,
    });
    let stands = Standing {
        status: order.status.clone(),
        reason: order.reason.clone(),
        payment: order.payment.clone(),
        stock: order.stock.clone(),
        ended_at: order.ended_at,
    };
    match audit::fold(lines) {
        Ok(folded) => findings.unless(folded == stands, I3, "audit", || {
            format!("{}: its history comes to {folded:?}, it is {stands:?}", order.order_id)
        }),
        Err(because) => {
            findings.add(I3, "audit", || format!("{}: its history {because}", order.order_id));
        }
    }
}

#[cfg(test)]
#[path = "checks_tests.rs"]
pub(crate) mod tests;
