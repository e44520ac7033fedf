//! Each violation, made by hand, is found by its check, and a valid order has no findings.

#[path = "orders_participants_tests.rs"]
mod participants;

use chassis::event::Event;
use checker::dead_letters::{DeadLetterIndex, check_unknown_record};
use checker::record::{RecordPosition, UnknownRecord};
use chrono::TimeDelta;
use events::orders::{OrderCancelled, OrderCreated};
use events::payments::PaymentDeclined;

use crate::checker::findings::Findings;
use crate::checker::order_cases::OrderCase;
use crate::checker::record::RecordSummary;
use crate::checker::rows::OrderRow;
use crate::checker::test_cases::{
    CREATED, ENDED, REFUNDED, RELEASED, RESERVED, VERIFIED, cancelled, case, checked, checked_with,
    confirmed, expected_mut, has_finding, history_row, id, now, part_mut, payment, record_mut,
};

/// The findings after a change to a valid case.
fn findings_after(mut case: OrderCase, change: impl FnOnce(&mut OrderCase)) -> Vec<String> {
    change(&mut case);
    checked(&case).1.kinds()
}

#[test]
fn every_way_an_order_can_end_is_accepted() {
    for (status, payment, stock) in [
        ("confirmed", "verified", "reserved"),
        ("cancelled", "refunded", "rejected"),
        ("cancelled", "declined", "released"),
        ("cancelled", "declined", "rejected"),
        ("cancelled", "refunded", "released"),
        ("cancelled", "void", "released"),
        ("cancelled", "refunded", "void"),
        ("cancelled", "void", "void"),
    ] {
        let (tally, findings) = checked(&case(status, payment, stock));
        assert_eq!(findings.count(), 0, "{status} {payment} {stock}: {findings:?}");
        assert_eq!(tally.confirmed_cents, if status == "confirmed" { 1000 } else { 0 });
        assert_eq!(tally.duplicates, 0);
    }
}

#[test]
fn an_order_that_has_not_ended_is_refused() {
    let mut pending = case("pending", "verified", "reserved");
    assert_eq!(checked(&pending).1.kinds(), ["I3 open"]);
    pending.parts.remove("stock");
    pending.order.as_mut().unwrap().legs.0.insert("stock", "waiting".into());
    pending.history.retain(|row| row.event_id != id(RESERVED));
    pending.expected.retain(|e| e.event_id != Some(id(RESERVED)));
    pending.records.retain(|record| record.event_id != id(RESERVED));
    assert_eq!(checked(&pending).1.kinds(), ["I3 open"]);
    assert_eq!(checked(&case("cancelled", "verified", "rejected")).1.kinds(), ["I3 open"]);
    assert_eq!(
        checked(&case("confirmed", "verified", "released")).1.kinds(),
        ["I3 audit", "I3 open"]
    );
}

#[test]
fn services_that_disagree_are_refused() {
    let off = findings_after(confirmed(), |case| {
        case.parts.insert("payment", payment("refunded"));
    });
    assert!(has_finding(&off, "I4 disagreement"), "{off:?}");
    let off = findings_after(confirmed(), |case| {
        case.parts.remove("stock");
    });
    assert!(has_finding(&off, "I4 disagreement"), "{off:?}");
    let off = findings_after(confirmed(), |case| case.order = None);
    assert!(has_finding(&off, "I11 ghost"), "{off:?}");
}

#[test]
fn amounts_and_lines_that_differ_are_refused() {
    // The record equals its row, so only the difference to the order is left.
    let off = findings_after(confirmed(), |case| part_mut(case, "payment").amount_cents = 999);
    assert_eq!(off, ["I5 amounts"]);
    let off =
        findings_after(confirmed(), |case| part_mut(case, "payment").currency = Some("USD".into()));
    assert_eq!(off, ["I5 amounts"]);
    let off =
        findings_after(confirmed(), |case| part_mut(case, "payment").customer_id = Some(id(99)));
    assert_eq!(off, ["I5 amounts"]);
    let off = findings_after(confirmed(), |case| part_mut(case, "stock").lines[0].quantity = 7);
    assert_eq!(off, ["I6 lines"]);
    let off = findings_after(confirmed(), |case| {
        case.order.as_mut().unwrap().total_cents = 1001;
        part_mut(case, "payment").amount_cents = 1001;
        expected_mut(case, CREATED).content = "1001 cents".into();
    });
    assert_eq!(off, ["I5 amounts", "I8 content"]);
}

#[test]
fn an_event_that_is_in_no_topic_is_lost_unless_it_is_older_than_its_topic() {
    for event in [CREATED, ENDED, VERIFIED, RESERVED] {
        let gone =
            |case: &mut OrderCase| case.records.retain(|record| record.event_id != id(event));
        assert_eq!(findings_after(confirmed(), gone), ["I8 lost"]);
    }
    let mut old = cancelled();
    old.records.clear();
    let long_ago = now() - TimeDelta::days(20);
    let order = old.order.as_mut().unwrap();
    (order.created_at, order.ended_at) = (long_ago, Some(long_ago));
    old.history.iter_mut().for_each(|row| row.occurred_at = long_ago);
    old.expected.iter_mut().for_each(|e| e.decided_at = long_ago);
    let (tally, findings) = checked(&old);
    assert_eq!((findings.count(), tally.expired), (0, 5));
}

#[test]
fn an_event_in_another_topic_than_its_own_is_lost_and_unknown() {
    let off = findings_after(confirmed(), |case| {
        record_mut(case, VERIFIED).position.topic = PaymentDeclined::topic()
    });
    assert_eq!(off, ["I8 lost", "I11 unknown"]);
}

#[test]
fn a_record_that_no_row_recorded_is_refused_unless_a_dead_letter_names_it() {
    let mut case = confirmed();
    let ghost = RecordSummary {
        event_id: id(66),
        position: RecordPosition { topic: OrderCancelled::topic(), partition: 1, offset: 5 },
        ..case.records[0]
    };
    case.records.push(ghost);
    assert_eq!(checked(&case).1.kinds(), ["I11 unknown"]);
    let mut dead_letters = DeadLetterIndex::default();
    dead_letters.add(ghost.position, "payment", [0; 32]);
    let (tally, findings) = checked_with(&case, &dead_letters);
    assert_eq!((findings.count(), tally.dead_lettered), (0, 1));
}

#[test]
fn an_unsettled_dead_letter_of_a_valid_event_is_refused() {
    let case = confirmed();
    let position = case.records[0].position;
    let mut dead_letters = DeadLetterIndex::default();
    dead_letters.add(position, "payment", [0; 32]);
    assert_eq!(checked_with(&case, &dead_letters).1.count(), 0);
    dead_letters.add_waiting(position);
    assert_eq!(checked_with(&case, &dead_letters).1.kinds(), ["I10 dead letters"]);
}

#[test]
fn a_duplicate_record_is_counted_and_one_with_other_content_is_refused() {
    let mut case = confirmed();
    let mut repeat = case.records[0];
    repeat.position.offset = 99;
    case.records.push(repeat);
    let (tally, findings) = checked(&case);
    assert_eq!((findings.count(), tally.duplicates, tally.compared.values().sum()), (0, 1, 5_u64));
    case.records.last_mut().unwrap().content_hash += 1;
    assert_eq!(checked(&case).1.kinds(), ["I8 content"]);
}

#[test]
fn a_record_that_differs_from_its_row_is_refused() {
    for event in [CREATED, ENDED, VERIFIED, RESERVED] {
        assert_eq!(
            findings_after(confirmed(), |case| record_mut(case, event).content_hash += 1),
            ["I8 content"]
        );
    }
    assert_eq!(
        findings_after(cancelled(), |case| record_mut(case, REFUNDED).content_hash += 1),
        ["I8 content"]
    );
    assert_eq!(
        findings_after(cancelled(), |case| record_mut(case, RESERVED).content_hash += 1),
        ["I8 content"]
    );
    let declined = case("cancelled", "declined", "rejected");
    assert_eq!(
        findings_after(declined, |case| record_mut(case, VERIFIED).content_hash += 1),
        ["I8 content"]
    );
}

#[test]
fn a_row_that_does_not_record_what_it_published_is_refused() {
    for (case, event) in [(confirmed(), VERIFIED), (cancelled(), REFUNDED)] {
        let off = findings_after(case, |case| expected_mut(case, event).event_id = None);
        assert!(has_finding(&off, "I11 unrecorded") && has_finding(&off, "I11 unknown"), "{off:?}");
    }
}

#[test]
fn a_history_with_an_event_too_few_too_many_or_twice_is_refused() {
    let both = ["I3 audit", "I7 history"];
    assert_eq!(findings_after(confirmed(), |case| drop(case.history.pop())), both);
    let off = findings_after(confirmed(), |case| {
        case.history.push(history_row(case, id(77), OrderCancelled::topic()));
    });
    assert_eq!(off, both);
    assert_eq!(
        findings_after(confirmed(), |case| case.history.push(case.history[0].clone())),
        both
    );
}

#[test]
fn a_history_that_folds_to_another_state_than_the_order_is_refused() {
    let of = |change: fn(&mut OrderRow)| {
        let change = |case: &mut OrderCase| change(case.order.as_mut().unwrap());
        findings_after(confirmed(), change)
    };
    assert!(has_finding(
        &of(|order| drop(order.legs.0.insert("payment", "refunded".into()))),
        "I3 audit"
    ));
    assert!(has_finding(&of(|order| order.status = "pending".into()), "I3 audit"));
    assert_eq!(of(|order| order.ended_at = Some(now() + TimeDelta::seconds(1))), ["I3 audit"]);
    let off = findings_after(cancelled(), |case| {
        case.order.as_mut().unwrap().reason = Some("deadline".into())
    });
    assert_eq!(off, ["I3 audit"]);

    // Impossible sequences, whatever state they end in.
    let out_of_turn =
        |case: &mut OrderCase| case.history.iter_mut().for_each(|row| row.position *= -1);
    assert_eq!(findings_after(confirmed(), out_of_turn), ["I3 audit"]);
    let confirmed_early = |case: &mut OrderCase| case.history[1].position = 0;
    assert_eq!(
        findings_after(confirmed(), |case| {
            case.history[0].position = -1;
            confirmed_early(case);
        }),
        ["I3 audit"]
    );
    let undone_early = |case: &mut OrderCase| {
        let undo = case.history.iter_mut().find(|row| row.event == "payments.refunded").unwrap();
        undo.position = 1;
    };
    assert_eq!(findings_after(cancelled(), undone_early), ["I3 audit"]);
}

#[test]
fn a_republished_record_is_no_duplicate_and_belongs_to_a_trace_of_its_own() {
    let again = |record: &RecordSummary| {
        let position = RecordPosition { offset: record.position.offset + 50, ..record.position };
        RecordSummary { position, trace_hash: 9, republished: true, ..*record }
    };
    let mut beside = confirmed();
    let republished: Vec<RecordSummary> = beside.records.iter().map(again).collect();
    beside.records.extend(republished);
    let (tally, findings) = checked(&beside);
    assert_eq!((findings.count(), tally.duplicates, tally.compared.values().sum()), (0, 0, 8_u64));
    beside.records[4].content_hash += 1;
    assert_eq!(
        checked(&beside).1.kinds(),
        ["I8 content"],
        "a republished record has the same content"
    );

    // The broker lost its disk: the republished record caused the others.
    let mut alone = confirmed();
    *record_mut(&mut alone, CREATED) = again(record_mut(&mut alone, CREATED));
    record_mut(&mut alone, RESERVED).trace_hash = 9;
    assert_eq!(checked(&alone).1.count(), 0);
    let mut first = confirmed();
    record_mut(&mut first, RESERVED).trace_hash = 9;
    assert_eq!(checked(&first).1.kinds(), ["I15 trace"], "no record was republished here");
}

#[test]
fn what_an_event_causes_is_in_its_trace() {
    for event in [ENDED, VERIFIED, RESERVED] {
        assert_eq!(
            findings_after(confirmed(), |case| record_mut(case, event).trace_hash = 2),
            ["I15 trace"]
        );
    }
    for command in ["customer", "deadline"] {
        let mut cancelled = case("cancelled", "refunded", "void");
        for event in [ENDED, REFUNDED, RELEASED] {
            record_mut(&mut cancelled, event).trace_hash = 2;
        }
        assert_eq!(checked(&cancelled).1.kinds(), ["I15 trace"]);
        cancelled.order.as_mut().unwrap().reason = Some(command.into());
        cancelled.history[1].detail = serde_json::json!({ "reason": command });
        assert_eq!(checked(&cancelled).1.count(), 0);
    }
}

#[test]
fn an_unknown_record_must_be_a_dead_letter_of_every_subscriber_of_its_topic() {
    let position = RecordPosition { topic: OrderCreated::topic(), partition: 1, offset: 5 };
    let unknown = UnknownRecord { position, hash: [1; 32], reason: "it is empty".into() };
    let off = |dead_letters: &DeadLetterIndex, readers: &[&str]| {
        let mut findings = Findings::default();
        check_unknown_record(&unknown, readers, dead_letters, &mut findings);
        findings.count()
    };
    let (mut dead_letters, both) = (DeadLetterIndex::default(), ["payment", "stock"]);
    assert_eq!(off(&dead_letters, &both), 2);
    dead_letters.add(position, "payment", [1; 32]);
    dead_letters.add(position, "stock", [2; 32]);
    assert_eq!(off(&dead_letters, &both), 1, "stock's dead letter is of other bytes");
    dead_letters.add(position, "stock", [1; 32]);
    assert_eq!(off(&dead_letters, &both), 0);
    assert_eq!(
        off(&dead_letters, &[]),
        1,
        "the topic has no subscriber, so no service stores a dead letter"
    );
}
