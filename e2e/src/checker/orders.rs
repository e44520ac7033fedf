//! The checks of one order: pure functions over its rows in three databases, its history and its
//! records. `orders_tests.rs` shows with rows made by hand that each check finds its violation.
//! `records.rs` compares the rows with the records.

use chassis::event::{Event, Topic};
use events::orders::OrderCancelled;
use events::participants::{WAITING, leg_state, participants};
use uuid::Uuid;

use crate::checker::findings::Findings;
use crate::checker::history_fold::{self, OrderState};
use crate::checker::invariants::Invariant::{I3, I4, I5, I6, I7, I11};
use crate::checker::order_cases::OrderCase;
use crate::checker::records::check_order_records;
use crate::checker::rows::{HistoryRow, OrderRow, PartRow};
use crate::checker::tally::{CheckContext, Tally};
use crate::stack_description::subscribers;

/// Checks one order with all of its rows and records.
pub fn check_case(
    case: &OrderCase,
    context: &CheckContext<'_>,
    tally: &mut Tally,
    findings: &mut Findings,
) {
    if let Some(order) = &case.order {
        check_order(order, case, tally, findings);
        check_history_fold(order, case, tally, findings);
    } else if !case.parts.is_empty() || !case.history.is_empty() {
        findings.add(I11, "ghost", || {
            format!("{}: a participant has it, the order service does not", case.order_id)
        });
    }
    for (service, part) in &case.parts {
        *tally.parts.entry(service).or_default().entry(part.state.clone()).or_default() += 1;
    }
    check_history(case, findings);
    check_order_records(case, context, tally, findings);
}

fn check_order(order: &OrderRow, case: &OrderCase, tally: &mut Tally, findings: &mut Findings) {
    let id = order.order_id;
    let total: i128 = order
        .lines
        .iter()
        .map(|line| i128::from(line.quantity) * i128::from(line.unit_price_cents))
        .sum();
    findings.unless(total == i128::from(order.total_cents), I5, "amounts", || {
        format!("{id}: the sum of its lines is {total}, its total is {}", order.total_cents)
    });
    match order.status.as_str() {
        "confirmed" => {
            tally.confirmed += 1;
            tally.confirmed_cents += i128::from(order.total_cents);
        }
        "cancelled" => {
            *tally.cancelled.entry(order.reason.clone().unwrap_or_default()).or_default() += 1;
        }
        _ => tally.pending += 1,
    }
    findings.unless(order.legs.have_ended(&order.status), I3, "open", || {
        format!("{id}: {}, {}", order.status, order.legs)
    });
    if order.status != "pending" {
        let states = case.parts.iter().map(|(service, part)| (*service, part.state.clone()));
        let ending = (order.reason.clone().unwrap_or_default(), states.collect());
        *tally.endings.entry(ending).or_default() += 1;
    }
    check_parts(order, case, tally, findings);
    if let Some(payment) = case.parts.get("payment") {
        check_payment(order, payment, findings);
    }
    if let Some(reservation) = case.parts.get("stock") {
        check_reservation(order, reservation, findings);
    }
}

/// Each leg of the order is the state of its participant. One that the order does not ask may answer all the same, and
/// keeps nothing of a cancelled order either.
fn check_parts(order: &OrderRow, case: &OrderCase, tally: &mut Tally, findings: &mut Findings) {
    let id = order.order_id;
    for answers in participants() {
        let (service, accepted) = (answers.service, leg_state(answers.accepted));
        let own = case.parts.get(service).map_or(WAITING, |part| &part.state);
        let leg = order.legs.0.get(service);
        findings.unless(leg.is_none_or(|leg| leg == own), I4, "disagreement", || {
            format!("{id}: {service} is {leg:?} in the order, and {own} in its own row")
        });
        let keeps = order.status == "cancelled" && own == accepted;
        findings.unless(!keeps, I3, "open", || format!("{id}: it is cancelled, {service} {own}"));
        let unanswered = match own {
            // An order has no effect on a participant that it does not ask.
            WAITING => [leg.map(|_| order.created_event_id), order.cancelled_event_id()],
            own if own == accepted => [order.cancelled_event_id(), None],
            _ => [None; 2],
        };
        let unanswered = unanswered.into_iter().flatten().map(|event_id| (service, event_id));
        tally.unanswered.extend(unanswered);
    }
}

fn check_payment(order: &OrderRow, payment: &PartRow, findings: &mut Findings) {
    let id = order.order_id;
    if ["verified", "refunded"].contains(&payment.state.as_str()) {
        let taken = (payment.amount_cents, payment.currency.as_deref());
        let due = (order.total_cents, Some(order.currency.as_str()));
        findings.unless(taken == due, I5, "amounts", || {
            format!("{id}: payment took {taken:?}, the order is for {due:?}")
        });
    } else if payment.state == "void" {
        findings.unless(payment.amount_cents == 0, I5, "amounts", || {
            format!("{id}: payment is void, with {} cents", payment.amount_cents)
        });
    }
    // A void payment never saw its order.
    let customer_id = (payment.state != "void").then_some(order.customer_id);
    findings.unless(payment.customer_id == customer_id, I5, "amounts", || {
        format!("{id}: payment names the customer {:?}, not {customer_id:?}", payment.customer_id)
    });
}

fn check_reservation(order: &OrderRow, reservation: &PartRow, findings: &mut Findings) {
    let id = order.order_id;
    let mut ordered: Vec<(&str, i64)> =
        order.lines.iter().map(|line| (line.sku.as_str(), line.quantity)).collect();
    let mut reserved: Vec<(&str, i64)> =
        reservation.lines.iter().map(|line| (line.sku.as_str(), line.quantity)).collect();
    ordered.sort_unstable();
    reserved.sort_unstable();
    let holds_units = ["reserved", "released"].contains(&reservation.state.as_str());
    let same = !holds_units || reserved == ordered;
    findings.unless(same, I6, "lines", || {
        format!("{id}: stock reserved {:?}, the order has {:?}", reservation.lines, order.lines)
    });
}

/// The order's history contains exactly the events that its rows record and that the order service publishes
/// or receives, each once.
fn check_history(case: &OrderCase, findings: &mut Findings) {
    if case.order.is_none() {
        return;
    }
    let id = case.order_id;
    let is_known =
        |topic: &Topic| topic.publisher == "order" || subscribers(topic).contains(&"order");
    let expected = case.expected.iter().filter(|e| is_known(e.topic));
    let mut should: Vec<(Uuid, &str)> =
        expected.filter_map(|e| Some((e.event_id?, e.topic.name))).collect();
    let mut is: Vec<(Uuid, &str)> =
        case.history.iter().map(|row| (row.event_id, row.event.as_str())).collect();
    should.sort_unstable();
    is.sort_unstable();
    for row in &should {
        findings.unless(is.contains(row), I7, "history", || {
            format!("{id}: its history lacks {} {}", row.1, row.0)
        });
    }
    for row in &is {
        findings.unless(should.contains(row), I7, "history", || {
            format!("{id}: its history has {} {}, which no row records", row.1, row.0)
        });
    }
    findings.unless(is.windows(2).all(|pair| pair[0].0 != pair[1].0), I7, "history", || {
        format!("{id}: its history has an event twice")
    });
}

/// The folded history yields the state of the order.
fn check_history_fold(
    order: &OrderRow,
    case: &OrderCase,
    tally: &mut Tally,
    findings: &mut Findings,
) {
    let mut history: Vec<&HistoryRow> = case.history.iter().collect();
    history.sort_unstable_by_key(|row| row.position);
    let since_cancelled =
        history.iter().skip_while(|row| row.event != OrderCancelled::topic().name);
    let approvals = participants().map(|answers| answers.accepted.name);
    let is_late = since_cancelled.clone().any(|row| approvals.contains(&row.event.as_str()));
    tally.late_approvals += u64::from(is_late);
    let lines = history.iter().map(|row| history_fold::HistoryEntry {
        event: &row.event,
        detail: &row.detail,
        occurred_at: row.occurred_at,
    });
    let state = OrderState {
        status: order.status.clone(),
        reason: order.reason.clone(),
        legs: order.legs.0.clone(),
        ended_at: order.ended_at,
    };
    let asked = order.legs.0.keys().copied();
    match history_fold::fold(asked, lines) {
        Ok(folded) => findings.unless(folded == state, I3, "audit", || {
            format!("{}: its history folds to {folded:?}, its state is {state:?}", order.order_id)
        }),
        Err(because) => {
            findings.add(I3, "audit", || format!("{}: its history {because}", order.order_id));
        }
    }
}

#[cfg(test)]
#[path = "orders_tests.rs"]
mod tests;
