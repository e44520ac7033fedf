//! Compares the records of the topics with the rows that record what was published: every event is
//! there (I8), no other is (I11), with the same content, in the trace of its cause (I15) and in the
//! order of decisions (I9).

use chassis::event::{Event, Topic};
use declaration::SUBSCRIPTIONS;
use events::orders::{OrderCancelled, OrderConfirmed, OrderCreated};
use events::participants::participants;
use events::shipments::{ShipmentBooked, ShipmentDelivered};

use crate::checker::expected_records::ExpectedRecord;
use crate::checker::findings::Findings;
use crate::checker::invariants::Invariant::{I8, I9, I10, I11, I12, I15};
use crate::checker::order_cases::OrderCase;
use crate::checker::record::RecordSummary;
use crate::checker::tally::{CheckContext, Tally};
use crate::checker::topic_reader::TopicsSnapshot;
use crate::stack_description::subscribers;

pub fn check_records(
    snapshot: &TopicsSnapshot,
    services: &[&str],
    context: &CheckContext<'_>,
    findings: &mut Findings,
) {
    snapshot.check(&SUBSCRIPTIONS, services, context.dead_letters, findings);
    for (position, what) in &snapshot.kept.out_of_order {
        findings.add(I9, "overtaken", || format!("{position}: {what}"));
    }
    for (position, fault) in &snapshot.kept.envelope_faults {
        findings.unless(context.dead_letters.contains(*position), I12, "envelope", || {
            format!("{position}: {fault}")
        });
    }
}

/// The records of an order are exactly those that its rows record.
pub fn check_order_records(
    case: &OrderCase,
    context: &CheckContext<'_>,
    tally: &mut Tally,
    findings: &mut Findings,
) {
    let id = case.order_id;
    for e in &case.expected {
        let Some(event_id) = e.event_id else {
            findings
                .add(I11, "unrecorded", || format!("{id}: no row records its {}", e.topic.name));
            continue;
        };
        let mut found = case.records.iter().filter(|record| is_record_of(record, e)).peekable();
        if found.peek().is_none() {
            if e.decided_at < context.retained_since {
                tally.expired += 1;
            } else {
                findings.add(I8, "lost", || {
                    format!("{id}: {} {event_id} is not in its topic", e.topic.name)
                });
            }
            continue;
        }
        let mut first = true;
        for record in found {
            let (topic, position) = (e.topic.name, record.position);
            // A valid event may have a dead letter for a while, but none that waits.
            let is_settled = !context.dead_letters.is_waiting(position);
            findings.unless(is_settled, I10, "dead letters", || {
                format!("{id}: {topic} at {position} is an unsettled dead letter")
            });
            *tally.compared.entry(topic).or_default() += 1;
            let repeated = u64::from(!first && !record.republished);
            tally.duplicates += repeated;
            tally.duplicates_delivered += repeated * u64::from(!subscribers(e.topic).is_empty());
            first &= record.republished;
            let is_right = e.has_content(record.content_hash)
                || context.erasures.accept(case, e, record, &mut tally.erased);
            findings.unless(is_right, I8, "content", || {
                format!("{id}: {topic} at {position} differs from the row")
            });
        }
    }
    for record in &case.records {
        if case.expected.iter().any(|e| is_record_of(record, e)) {
            continue;
        }
        if context.dead_letters.contains(record.position) {
            tally.dead_lettered += 1;
        } else {
            findings.add(I11, "unknown", || {
                format!(
                    "{id}: no row records {} at {}, and no dead letter contains it",
                    record.event_id, record.position
                )
            });
        }
    }
    check_traces(case, tally, findings);
    check_append_order(case, context, findings);
}

/// The events of one service about one order arrive in the order of their decisions: the relay
/// sends the second after the acknowledgement of the first. A connector does not wait.
///
/// The two events are in different topics, so their offsets cannot be compared. The append times of
/// the broker (`LogAppendTime`) can, in milliseconds. Brokers with different clocks add the clock
/// skew.
fn check_append_order(case: &OrderCase, context: &CheckContext<'_>, findings: &mut Findings) {
    let first = |topic: &Topic| {
        let e = case.expected.iter().find(|e| e.topic.name == topic.name)?;
        let records = case.records.iter().filter(|record| is_record_of(record, e));
        // A republished record may replace a lost one, whose append time is unknown.
        records.filter(|record| !record.republished).map(|record| record.appended_ms).min()
    };
    let decisions = [OrderConfirmed::topic(), OrderCancelled::topic()];
    let decisions = decisions.map(|later| (OrderCreated::topic(), later)).into_iter();
    let answers = participants().into_iter().flat_map(|it| {
        let kept = it.undo_refused.map(|kept| [(it.accepted, kept), (kept, it.undone)]);
        kept.into_iter().flatten().chain([(it.accepted, it.undone)])
    });
    for (made, later) in decisions.chain(answers) {
        if context.carried_by_connector.contains(made.publisher) {
            continue;
        }
        if let (Some(before), Some(after)) = (first(made), first(later)) {
            let early_ms = before - after;
            findings.unless(early_ms <= context.clock_skew_ms, I9, "overtaken", || {
                format!(
                    "{}: {} arrived {early_ms} ms before {}, which was decided first",
                    case.order_id, later.name, made.name
                )
            });
        }
    }
}

fn is_record_of(record: &RecordSummary, e: &ExpectedRecord) -> bool {
    e.event_id == Some(record.event_id) && record.position.topic.name == e.topic.name
}

/// An event belongs to the trace of its cause. A customer's cancellation begins a new trace.
///
/// A republished event has a second trace, and its effects may belong to either. They belong to an
/// unknown trace only if the first record was lost with the broker's disk.
fn check_traces(case: &OrderCase, tally: &mut Tally, findings: &mut Findings) {
    let records = |topic: &Topic| {
        let e = case.expected.iter().find(|e| e.topic.name == topic.name);
        case.records.iter().filter(move |record| e.is_some_and(|e| is_record_of(record, e)))
    };
    // A command of a customer or of the deadline begins a new trace. So does that of an operator who settles what a
    // participant could not undo.
    let reason = case.order.as_ref().and_then(|order| order.reason.as_deref());
    let by_command = matches!(reason, Some("customer" | "deadline"));
    let (created, cancelled) = (OrderCreated::topic(), OrderCancelled::topic());
    let mut caused: Vec<(&Topic, &Topic)> = vec![(created, OrderConfirmed::topic())];
    for answers in participants() {
        caused.extend([(created, answers.accepted), (created, answers.refused)]);
        let kept = answers.undo_refused.filter(|topic| records(topic).next().is_some());
        caused.push((cancelled, kept.unwrap_or(answers.undone)));
    }
    if !by_command {
        caused.push((created, cancelled));
    }
    // A customer's cancellation of a shipment begins a new trace as well.
    let (confirmed, booked) = (OrderConfirmed::topic(), ShipmentBooked::topic());
    caused.extend([(confirmed, booked), (booked, ShipmentDelivered::topic())]);
    let (mut links, mut all) = (0, true);
    for (cause, effect) in caused {
        let after = records(effect).find(|record| !record.republished);
        if let Some(after) = after
            && records(cause).any(|record| !record.republished)
        {
            let caused = records(cause).any(|record| record.trace_hash == after.trace_hash);
            (links, all) = (links + 1, all && caused);
            findings.unless(caused, I15, "trace", || {
                format!("{}: {} is not in the trace of {}", case.order_id, effect.name, cause.name)
            });
        }
    } // The answers and the confirmation: everything but the order itself.
    let confirmed = case.order.as_ref().is_some_and(|order| order.status == "confirmed");
    tally.traced += u64::from(confirmed && links + 1 == case.expected.len() && all);
}
