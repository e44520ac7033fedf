//! Orders made by hand, with their rows, history and records, for the tests of the checks.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use chassis::event::{Event, Topic};
use checker::dead_letters::DeadLetterIndex;
use checker::record::RecordPosition;
use chrono::{DateTime, TimeDelta, Utc};
use events::orders::{OrderCancelled, OrderConfirmed, OrderCreated};
use events::participants::{Answers, VOID, WAITING, leg_state, participants};
use serde_json::json;
use uuid::Uuid;

use crate::checker::content_hash::content_hash;
use crate::checker::erasures::Erasures;
use crate::checker::expected_records::ExpectedRecord;
use crate::checker::findings::Findings;
use crate::checker::order_cases::OrderCase;
use crate::checker::orders::check_case;
use crate::checker::record::RecordSummary;
use crate::checker::rows::{HistoryRow, OrderRow, PartRow};
use crate::checker::tally::{CheckContext, Tally};
use crate::client::order::{Legs, LineRequest, OrderLine};

pub(crate) fn id(number: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + number)
}

pub(crate) fn now() -> DateTime<Utc> {
    DateTime::from_timestamp_micros(1_795_132_800_000_000).unwrap()
}

pub(crate) const CREATED: u128 = 11;
pub(crate) const ENDED: u128 = 12;
pub(crate) const VERIFIED: u128 = 13;
pub(crate) const REFUNDED: u128 = 14;
pub(crate) const RESERVED: u128 = 15;
pub(crate) const RELEASED: u128 = 16;

pub(crate) fn order(status: &str, payment: &str, stock: &str) -> OrderRow {
    let lines = vec![
        OrderLine { sku: "pen".into(), quantity: 2, unit_price_cents: 150 },
        OrderLine { sku: "ink".into(), quantity: 1, unit_price_cents: 700 },
    ];
    let ended = status != "pending";
    OrderRow {
        order_id: id(1),
        customer_id: id(2),
        status: status.into(),
        reason: (status == "cancelled").then(|| "stock_rejected".to_string()),
        legs: Legs([("payment", payment.into()), ("stock", stock.into())].into()),
        total_cents: 1000,
        currency: "EUR".into(),
        lines,
        created_at: now(),
        ended_at: ended.then(now),
        created_event_id: id(CREATED),
        ended_event_id: ended.then(|| id(ENDED)),
    }
}

pub(crate) fn payment(state: &str) -> PartRow {
    let void = state == "void";
    PartRow {
        order_id: id(1),
        state: state.into(),
        customer_id: (!void).then(|| id(2)),
        amount_cents: if void { 0 } else { 1000 },
        currency: (!void).then(|| "EUR".to_string()),
        ..PartRow::default()
    }
}

pub(crate) fn reservation(state: &str) -> PartRow {
    let lines =
        [("ink", 1), ("pen", 2)].map(|(sku, quantity)| LineRequest { sku: sku.into(), quantity });
    let held = ["reserved", "released"].contains(&state);
    let lines = if held { lines.to_vec() } else { vec![] };
    PartRow { order_id: id(1), state: state.into(), lines, ..PartRow::default() }
}

/// The events that rows with these states record. Their content is another one for each topic, and need not be
/// that of the rows: the queries take it from real ones.
fn expected_records(status: &str, payment: &str, stock: &str) -> Vec<ExpectedRecord> {
    let mut events = vec![(OrderCreated::topic(), CREATED)];
    match status {
        "confirmed" => events.push((OrderConfirmed::topic(), ENDED)),
        "cancelled" => events.push((OrderCancelled::topic(), ENDED)),
        _ => {}
    }
    let answers = participants()
        .into_iter()
        .zip([(payment, VERIFIED, REFUNDED), (stock, RESERVED, RELEASED)]);
    for (Answers { accepted, refused, undone, .. }, (state, response, compensation)) in answers {
        if state == leg_state(refused) {
            events.push((refused, response));
        } else if ![VOID, WAITING].contains(&state) {
            events.push((accepted, response));
        }
        if [leg_state(undone), VOID].contains(&state) {
            events.push((undone, compensation));
        }
    }
    let expected = |(topic, event_id): (&'static Topic, u128)| ExpectedRecord {
        topic,
        order_id: id(1),
        event_id: Some(id(event_id)),
        decided_at: now(),
        content: topic.name.into(),
    };
    events.into_iter().map(expected).collect()
}

/// A history row of an event, with its position in the usual sequence.
pub(crate) fn history_row(case: &OrderCase, event_id: Uuid, topic: &Topic) -> HistoryRow {
    let answers = participants();
    let responses = answers.iter().flat_map(|answers| [answers.accepted, answers.refused]);
    let sequence = [OrderCreated::topic()]
        .into_iter()
        .chain(responses)
        .chain([OrderConfirmed::topic(), OrderCancelled::topic()])
        .chain(answers.iter().map(|answers| answers.undone));
    let position = sequence.map(|at| at.name).position(|name| name == topic.name).unwrap() as i64;
    let reason = case.order.as_ref().and_then(|order| order.reason.clone());
    let part = |service| case.parts.get(service).filter(|part| part.state != VOID);
    let lines = part("stock").map_or(&[][..], |held| &held.lines).iter().map(|line| &line.sku);
    let detail = match topic.publisher {
        "order" => json!({ "reason": reason }),
        "payment" => json!({ "amount_cents": part("payment").map(|part| part.amount_cents) }),
        _ => json!({ "lines": lines.collect::<Vec<_>>() }),
    };
    let (event, occurred_at) = (topic.name.into(), now());
    HistoryRow { order_id: id(1), event_id, position, event, detail, occurred_at }
}

/// An order with the rows, history and records of these states.
pub(crate) fn case(status: &str, payment_state: &str, stock_state: &str) -> OrderCase {
    let mut case = OrderCase {
        order_id: id(1),
        order: Some(order(status, payment_state, stock_state)),
        parts: [("payment", payment(payment_state)), ("stock", reservation(stock_state))].into(),
        ..OrderCase::default()
    };
    for (offset, e) in (0..).zip(expected_records(status, payment_state, stock_state)) {
        let event_id = e.event_id.unwrap();
        case.history.push(history_row(&case, event_id, e.topic));
        case.records.push(RecordSummary {
            order_id: id(1),
            event_id,
            position: RecordPosition { topic: e.topic, partition: 3, offset },
            content_hash: content_hash(&e.content),
            personal_hashes: None,
            trace_hash: 1,
            appended_ms: now().timestamp_millis() + offset,
            republished: false,
        });
        case.expected.push(e);
    }
    case
}

pub(crate) fn confirmed() -> OrderCase {
    case("confirmed", "verified", "reserved")
}

pub(crate) fn cancelled() -> OrderCase {
    case("cancelled", "refunded", "rejected")
}

pub(crate) fn part_mut<'a>(case: &'a mut OrderCase, service: &str) -> &'a mut PartRow {
    case.parts.get_mut(service).unwrap()
}

pub(crate) fn record_mut(case: &mut OrderCase, event: u128) -> &mut RecordSummary {
    case.records.iter_mut().find(|record| record.event_id == id(event)).unwrap()
}

pub(crate) fn expected_mut(case: &mut OrderCase, event: u128) -> &mut ExpectedRecord {
    case.expected.iter_mut().find(|e| e.event_id == Some(id(event))).unwrap()
}

pub(crate) fn checked(case: &OrderCase) -> (Tally, Findings) {
    checked_with(case, &DeadLetterIndex::default())
}

pub(crate) fn checked_with(case: &OrderCase, dead_letters: &DeadLetterIndex) -> (Tally, Findings) {
    let (mut tally, mut findings) = (Tally::default(), Findings::default());
    check_case(case, &context(dead_letters), &mut tally, &mut findings);
    (tally, findings)
}

/// The context of a check: these dead letters, and no erasure.
pub(crate) fn context(dead_letters: &DeadLetterIndex) -> CheckContext<'_> {
    static NONE: LazyLock<Erasures> = LazyLock::new(Erasures::default);
    CheckContext {
        dead_letters,
        erasures: &NONE,
        retained_since: now() - TimeDelta::days(13),
        clock_skew_ms: 0,
        carried_by_connector: BTreeSet::new(),
    }
}

pub(crate) fn has_finding(off: &[String], kind: &str) -> bool {
    off.iter().any(|off| off == kind)
}
