//! States and records made by hand, each checked by the part of the checker that reads it: what the
//! tests of the invariants change, one thing at a time.

use crate::stack_description::SERVICES;
use std::collections::BTreeSet;
use std::time::Duration;

use chassis::event::Event;
use checker::dead_letters::{DeadLetterIndex, check_unknown_record};
use checker::inbox::{InboxCheck, InboxContext, InboxRow};
use checker::record::{EventRecord, RecordPosition, UnknownRecord};
use chrono::{DateTime, Utc};
use events::orders::OrderCreated;
use uuid::Uuid;

use crate::checker::balances;
use crate::checker::balances::tests::{balanced_account, balanced_item};
use crate::checker::balances::{AccountRow, ItemDescription, ItemRow, Totals};
use crate::checker::findings::Findings;
use crate::checker::record::RecordSummary;
use crate::checker::records;
use crate::checker::test_cases::{cancelled, checked, confirmed, context, id, record_mut};
use crate::checker::topic_reader::TopicsSnapshot;
use crate::checker::transitions::{RowChange, TransitionCheck};
use crate::client::client_history::{Attempt, ClientHistory};
use crate::client::order::LineRequest;
use crate::client::order_plan::OrderPlan;
use crate::client::outcome::{HttpResponse, Outcome};
use crate::workload::history_check;
use crate::workload::history_check::StoredOrder;
use crate::workload::load_summary::LoadSummary;
use crate::workload::resource_usage::{DatabaseUsage, ResourceUsage};

/// The findings after a change of stock's resource usage.
pub(super) fn check_usage(change: fn(&mut ResourceUsage)) -> Findings {
    let database =
        DatabaseUsage { instances: 1, connections: 17, outbox_rows: 0, outbox_bytes: 10_000 };
    let databases = [("stock".to_string(), database)].into();
    let memory_bytes = [("stock".to_string(), 30_000_000)].into();
    let before = ResourceUsage { memory_bytes, databases };
    let (mut now, mut findings) = (before.clone(), Findings::default());
    change(&mut now);
    now.check(&before, &mut findings);
    findings
}

pub(super) fn stock_usage(now: &mut ResourceUsage) -> &mut DatabaseUsage {
    now.databases.get_mut("stock").unwrap()
}

pub(super) fn response(status: u16, body: &str) -> Outcome {
    let body = body.as_bytes().to_vec();
    let answer = HttpResponse { status, location: None, content_type: String::new(), body };
    if (200..300).contains(&status) { Outcome::Ok(answer) } else { Outcome::Refused(answer) }
}

pub(super) fn accepted(order: u128) -> Outcome {
    let order = serde_json::json!({
        "order_id": id(order), "customer_id": id(2), "status": "pending", "reason": null,
        "payment": "waiting", "stock": "waiting", "total_cents": 150, "currency": "EUR",
        "lines": [], "created_at": DateTime::<Utc>::default(), "ended_at": null,
    });
    response(201, &order.to_string())
}

pub(super) fn rejected(status: u16) -> Outcome {
    response(status, r#"{"type": "/problems/unavailable"}"#)
}

pub(super) fn reused(status: u16) -> Outcome {
    response(status, r#"{"type": "/problems/idempotency-key-reused"}"#)
}

pub(super) fn unknown() -> Outcome {
    Outcome::Unknown("cut".to_string())
}

/// A client that received these responses, in this order.
pub(super) fn history_of(outcomes: &[Outcome]) -> ClientHistory {
    let plan = OrderPlan {
        due_at: Duration::ZERO,
        key: "key".to_string(),
        customer_id: id(2),
        lines: lines(),
        cancel_after: None,
        duplicated: false,
        key_reused: false,
        disconnect_after: None,
    };
    let tries = outcomes.iter().cloned();
    let tries = tries.map(|outcome| Attempt { outcome, answered_at: Duration::ZERO });
    ClientHistory::new(&plan, tries.collect())
}

pub(super) fn lines() -> Vec<LineRequest> {
    vec![LineRequest { sku: "pen".to_string(), quantity: 1 }]
}

/// The findings if one client received these responses and these orders are stored.
pub(super) fn check_client(outcomes: &[Outcome], there: &[u128]) -> Findings {
    check_clients(&[history_of(outcomes)], there)
}

pub(super) fn check_clients(clients: &[ClientHistory], there: &[u128]) -> Findings {
    let stored =
        |order: &u128| StoredOrder { order_id: id(*order), customer_id: id(2), lines: lines() };
    let (stored, mut findings): (Vec<StoredOrder>, _) =
        (there.iter().map(stored).collect(), Findings::default());
    history_check::check(clients, &stored, &mut findings);
    findings
}

/// The findings if one client sent another request with its key and received this response.
pub(super) fn check_reused_key(other: Outcome) -> Findings {
    let history = ClientHistory { conflicting: Some(other), ..history_of(&[accepted(1)]) };
    let stored = StoredOrder { order_id: id(1), customer_id: id(2), lines: lines() };
    let mut findings = Findings::default();
    history_check::check(&[history], &[stored], &mut findings);
    findings
}

pub(super) fn summarize(outcomes: &[Outcome]) -> Findings {
    LoadSummary::from_histories(&[history_of(outcomes)], Duration::ZERO).findings
}

/// The findings after a change to a valid confirmed order.
pub(super) fn check_case(change: fn(&mut crate::checker::order_cases::OrderCase)) -> Findings {
    let mut case = confirmed();
    change(&mut case);
    checked(&case).1
}

/// A cancelled order with one event that arrived before the earlier one.
pub(super) fn check_reordered(made: u128, later: u128) -> Findings {
    let mut case = cancelled();
    let made_ms = record_mut(&mut case, made).appended_ms;
    record_mut(&mut case, later).appended_ms = made_ms - 1;
    checked(&case).1
}

/// Changes of a row of each table in one transaction. The first order existed before.
pub(super) fn check_transitions(rows: &[(&str, [&str; 3])]) -> Findings {
    let (mut changes, mut findings) = (TransitionCheck::default(), Findings::default());
    for (nth, (what, became)) in rows.iter().enumerate() {
        let tx = if nth == 0 && *what == "orders" { 0 } else { 1 };
        let became = Some(became.iter().map(|column| Some(column.to_string())).collect());
        changes.check_change(
            &RowChange {
                tx,
                table_name: what.to_string(),
                key: "2".to_string(),
                new_values: became,
            },
            &mut findings,
        );
    }
    changes.finish(&mut findings);
    findings
}

pub(super) fn check_account(change: fn(&mut AccountRow)) -> Findings {
    let mut row = balanced_account();
    change(&mut row);
    let mut findings = Findings::default();
    balances::check_account(&row, &mut Totals::default(), &mut findings);
    findings
}

pub(super) fn check_item(change: fn(&mut ItemRow, &mut ItemDescription)) -> Findings {
    let (mut row, mut known) = balanced_item();
    let newest = (id(5), known.clone());
    change(&mut row, &mut known);
    let (mut stock, mut findings) = (Totals::default(), Findings::default());
    balances::check_item(&row, Some(&newest), Some(&known), &mut stock, &mut findings);
    findings
}

/// An empty inbox, with these records in the topics.
pub(super) fn check_empty_inbox(records: &[RecordSummary]) -> Findings {
    let (dead_letters, mut findings) = (DeadLetterIndex::default(), Findings::default());
    let none = BTreeSet::new();
    let context = inbox_context(&dead_letters, &none);
    let received: Vec<EventRecord> = records.iter().map(event_record).collect();
    InboxCheck::new("order", &received, &context).finish(&mut findings);
    findings
}

/// An inbox of payment with this event of a case.
pub(super) fn check_inbox_entry(
    case: &crate::checker::order_cases::OrderCase,
    event: u128,
) -> Findings {
    let (tally, dead_letters, mut findings) =
        (checked(case).0, DeadLetterIndex::default(), Findings::default());
    let context = inbox_context(&dead_letters, &tally.unanswered);
    let record = case.records.iter().find(|record| record.event_id == id(event)).unwrap();
    let (received, topic) = ([event_record(record)], record.position.topic.name.to_string());
    let row = InboxRow { event_id: id(event), topic, received_at: DateTime::default() };
    let mut check = InboxCheck::new("payment", &received, &context);
    check.check_row(&row, &mut findings);
    findings
}

pub(super) fn check_snapshot(change: fn(&mut TopicsSnapshot, RecordPosition)) -> Findings {
    let (mut log, dead_letters, mut findings) =
        (TopicsSnapshot::default(), DeadLetterIndex::default(), Findings::default());
    change(&mut log, position(5));
    records::check_records(&log, &SERVICES, &context(&dead_letters), &mut findings);
    findings
}

/// An unknown record in a topic with these subscribers, without a dead letter.
pub(super) fn check_poison(readers: &[&str]) -> Findings {
    let (dead_letters, mut findings) = (DeadLetterIndex::default(), Findings::default());
    let unknown =
        UnknownRecord { position: position(5), hash: [1; 32], reason: "it is empty".into() };
    check_unknown_record(&unknown, readers, &dead_letters, &mut findings);
    findings
}

fn event_record(record: &RecordSummary) -> EventRecord {
    EventRecord { event_id: record.event_id, position: record.position }
}

fn inbox_context<'a>(
    dead_letters: &'a DeadLetterIndex,
    unanswered: &'a BTreeSet<(&'static str, Uuid)>,
) -> InboxContext<'a> {
    InboxContext { dead_letters, retained_since: DateTime::default(), unanswered }
}

pub(super) fn position(offset: i64) -> RecordPosition {
    RecordPosition { topic: OrderCreated::topic(), partition: 1, offset }
}
