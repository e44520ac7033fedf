//! Each violation, made by hand, is refused by the check that is meant for it; and what is right is
//! not refused.

use chrono::TimeDelta;

use super::*;
use crate::arrivals::check_foreign;
use crate::facts::{Foreign, Place, topic_number};

pub(crate) fn id(number: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + number)
}

pub(crate) fn now() -> DateTime<Utc> {
    DateTime::from_timestamp_micros(1_795_132_800_000_000).unwrap()
}

pub(crate) const CREATED: u128 = 11;
pub(crate) const ENDED: u128 = 12;
pub(crate) const PAID: u128 = 13;
pub(crate) const PAID_BACK: u128 = 14;
pub(crate) const HELD: u128 = 15;
pub(crate) const GIVEN_BACK: u128 = 16;

fn order(status: &str, payment: &str, stock: &str) -> OrderRow {
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
        payment: payment.into(),
        stock: stock.into(),
        total_cents: 1000,
        currency: "EUR".into(),
        lines,
        created_at: now(),
        ended_at: ended.then(now),
        created_event_id: id(CREATED),
        ended_event_id: ended.then(|| id(ENDED)),
    }
}

pub(crate) fn payment(state: &str) -> PaymentRow {
    let void = state == "void";
    PaymentRow {
        order_id: id(1),
        state: state.into(),
        customer_id: (!void).then(|| id(2)),
        amount_cents: if void { 0 } else { 1000 },
        currency: (!void).then(|| "EUR".to_string()),
        reason: (state == "declined").then(|| "no_account".to_string()),
        answer_event_id: (!void).then(|| id(PAID)),
        undo_event_id: ["refunded", "void"].contains(&state).then(|| id(PAID_BACK)),
        created_at: now(),
        updated_at: now(),
    }
}

pub(crate) fn reservation(state: &str) -> ReservationRow {
    let void = state == "void";
    let lines = [("ink", 1), ("pen", 2)].map(|(sku, quantity)| Line { sku: sku.into(), quantity });
    let held = ["reserved", "released"].contains(&state);
    ReservationRow {
        order_id: id(1),
        state: state.into(),
        lines: if held { lines.to_vec() } else { vec![] },
        shortfall: (state == "rejected").then(|| Shortfall {
            reason: "out_of_stock".into(),
            sku: "pen".into(),
            requested: 2,
            available: 1,
        }),
        answer_event_id: (!void).then(|| id(HELD)),
        undo_event_id: ["released", "void"].contains(&state).then(|| id(GIVEN_BACK)),
        created_at: now(),
        updated_at: now(),
    }
}

/// A line of a history: what its event said, and its place in the sequence of such events.
fn line(case: &Case, event_id: Uuid, topic: &Topic) -> HistoryRow {
    let sequence = [
        &orders::CREATED,
        &payments::VERIFIED,
        &payments::DECLINED,
        &stock::RESERVED,
        &stock::REJECTED,
        &orders::CONFIRMED,
        &orders::CANCELLED,
        &payments::REFUNDED,
        &stock::RELEASED,
    ];
    let position = sequence.iter().position(|at| at.name == topic.name).unwrap() as i64;
    let reason = case.order.as_ref().and_then(|order| order.reason.clone());
    let amount = case.payment.as_ref().filter(|payment| payment.state != "void");
    let lines: Vec<&str> = case
        .reservation
        .iter()
        .flat_map(|held| held.lines.iter().map(|line| line.sku.as_str()))
        .collect();
    let detail = serde_json::json!({
        "reason": reason, "amount_cents": amount.map(|payment| payment.amount_cents), "lines": lines
    });
    let (event, occurred_at) = (topic.name.into(), now());
    HistoryRow { order_id: id(1), event_id, position, event, detail, occurred_at }
}

/// An order with its rows, and with the history and the records that belong to them.
pub(crate) fn case(status: &str, payment_state: &str, stock_state: &str) -> Case {
    let mut case = Case {
        order_id: id(1),
        order: Some(order(status, payment_state, stock_state)),
        payment: Some(payment(payment_state)),
        reservation: Some(reservation(stock_state)),
        ..Case::default()
    };
    let mut none = Findings::default();
    for (offset, e) in (0..).zip(expected(&case, &mut none)) {
        case.history.push(line(&case, e.event_id, e.topic));
        case.facts.push(Fact {
            order_id: id(1),
            event_id: e.event_id,
            place: Place { topic: topic_number(e.topic), partition: 3, offset },
            content: e.content.unwrap_or(7),
            trace: 1,
            appended_ms: now().timestamp_millis() + offset,
            announced: false,
        });
    }
    assert_eq!(none.count(), 0);
    case
}

pub(crate) fn checked(case: &Case) -> (Tally, Findings) {
    checked_with(case, &Letters::default())
}

pub(crate) fn checked_with(case: &Case, letters: &Letters) -> (Tally, Findings) {
    let (mut tally, mut findings) = (Tally::default(), Findings::default());
    let around = Around { letters, kept_since: now() - TimeDelta::days(13), clocks_apart_ms: 0 };
    check_case(case, &around, &mut tally, &mut findings);
    (tally, findings)
}

/// What a change to a right case is refused for.
fn refused(mut case: Case, change: impl FnOnce(&mut Case)) -> Vec<String> {
    change(&mut case);
    checked(&case).1.kinds()
}

pub(crate) fn has(off: &[String], kind: &str) -> bool {
    off.iter().any(|off| off == kind)
}

pub(crate) fn confirmed() -> Case {
    case("confirmed", "verified", "reserved")
}

pub(crate) fn cancelled() -> Case {
    case("cancelled", "refunded", "rejected")
}

#[test]
fn every_way_an_order_can_end_is_right() {
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
        assert_eq!(tally.repeats, 0);
    }
}

#[test]
fn an_order_that_has_not_ended_is_refused() {
    let mut pending = case("pending", "verified", "reserved");
    assert_eq!(checked(&pending).1.kinds(), ["I3 open"]);
    pending.reservation = None;
    pending.order.as_mut().unwrap().stock = "waiting".into();
    pending.history.retain(|row| row.event_id != id(HELD));
    pending.facts.retain(|fact| fact.event_id != id(HELD));
    assert_eq!(checked(&pending).1.kinds(), ["I3 open"]);
    assert_eq!(checked(&case("cancelled", "verified", "rejected")).1.kinds(), ["I3 open"]);
    assert_eq!(
        checked(&case("confirmed", "verified", "released")).1.kinds(),
        ["I3 audit", "I3 open"]
    );
}

#[test]
fn services_that_disagree_are_refused() {
    let off = refused(confirmed(), |case| case.payment = Some(payment("refunded")));
    assert!(has(&off, "I4 disagreement"), "{off:?}");
    let off = refused(confirmed(), |case| case.reservation = None);
    assert!(has(&off, "I4 disagreement"), "{off:?}");
    let off = refused(confirmed(), |case| case.order = None);
    assert!(has(&off, "I11 ghost"), "{off:?}");
}

#[test]
fn amounts_and_lines_that_differ_are_refused() {
    // The record says what the row says, so that only the disagreement with the order is left.
    let off = refused(confirmed(), |case| {
        case.payment.as_mut().unwrap().amount_cents = 999;
        fact_mut(case, PAID).content = Says::paid(999, "EUR");
    });
    assert_eq!(off, ["I5 amounts"]);
    let off = refused(confirmed(), |case| {
        case.payment.as_mut().unwrap().currency = Some("USD".into());
        fact_mut(case, PAID).content = Says::paid(1000, "USD");
    });
    assert_eq!(off, ["I5 amounts"]);
    let off =
        refused(confirmed(), |case| case.payment.as_mut().unwrap().customer_id = Some(id(99)));
    assert_eq!(off, ["I5 amounts"]);
    let off = refused(confirmed(), |case| {
        let reservation = case.reservation.as_mut().unwrap();
        reservation.lines[0].quantity = 7;
        let content = Says::lines(&reservation.lines);
        fact_mut(case, HELD).content = content;
    });
    assert_eq!(off, ["I6 lines"]);
    let off = refused(confirmed(), |case| {
        let order = case.order.as_mut().unwrap();
        order.total_cents = 1001;
        case.payment.as_mut().unwrap().amount_cents = 1001;
    });
    assert!(has(&off, "I5 amounts") && has(&off, "I8 content"), "{off:?}");
}

pub(crate) fn fact_mut(case: &mut Case, event: u128) -> &mut Fact {
    case.facts.iter_mut().find(|fact| fact.event_id == id(event)).unwrap()
}

#[test]
fn an_event_that_is_in_no_topic_is_lost_unless_it_is_older_than_its_topic() {
    for event in [CREATED, ENDED, PAID, HELD] {
        let gone = |case: &mut Case| case.facts.retain(|fact| fact.event_id != id(event));
        assert_eq!(refused(confirmed(), gone), ["I8 lost"]);
    }
    let mut old = cancelled();
    old.facts.clear();
    let long_ago = now() - TimeDelta::days(20);
    let order = old.order.as_mut().unwrap();
    (order.created_at, order.ended_at) = (long_ago, Some(long_ago));
    old.history.iter_mut().for_each(|row| row.occurred_at = long_ago);
    let payment = old.payment.as_mut().unwrap();
    (payment.created_at, payment.updated_at) = (long_ago, long_ago);
    let reservation = old.reservation.as_mut().unwrap();
    (reservation.created_at, reservation.updated_at) = (long_ago, long_ago);
    let (tally, findings) = checked(&old);
    assert_eq!((findings.count(), tally.expired), (0, 5));
}

#[test]
fn an_event_in_another_topic_than_its_own_is_lost_and_foreign() {
    let off = refused(confirmed(), |case| {
        fact_mut(case, PAID).place.topic = topic_number(&payments::DECLINED)
    });
    assert_eq!(off, ["I8 lost", "I11 foreign"]);
}

#[test]
fn a_record_that_no_row_recorded_is_refused_unless_a_dead_letter_names_it() {
    let mut case = confirmed();
    let ghost = Fact {
        event_id: id(66),
        place: Place { topic: topic_number(&orders::CANCELLED), partition: 1, offset: 5 },
        ..case.facts[0]
    };
    case.facts.push(ghost);
    assert_eq!(checked(&case).1.kinds(), ["I11 foreign"]);
    let mut letters = Letters::default();
    letters.add(ghost.place, "payment", [0; 32]);
    let (tally, findings) = checked_with(&case, &letters);
    assert_eq!((findings.count(), tally.set_aside), (0, 1));
}

#[test]
fn an_event_of_ours_among_the_dead_letters_is_refused_until_it_is_settled() {
    let case = confirmed();
    let place = case.facts[0].place;
    let mut letters = Letters::default();
    letters.add(place, "payment", [0; 32]);
    assert_eq!(checked_with(&case, &letters).1.count(), 0);
    letters.add_waiting(place);
    assert_eq!(checked_with(&case, &letters).1.kinds(), ["I10 dead letters"]);
}

#[test]
fn a_repeat_of_a_record_is_counted_and_a_repeat_that_says_something_else_is_refused() {
    let mut case = confirmed();
    let mut repeat = case.facts[0];
    repeat.place.offset = 99;
    case.facts.push(repeat);
    let (tally, findings) = checked(&case);
    assert_eq!((findings.count(), tally.repeats, tally.facts), (0, 1, 5));
    case.facts.last_mut().unwrap().content += 1;
    assert_eq!(checked(&case).1.kinds(), ["I8 content"]);
}

#[test]
fn a_record_that_says_something_else_than_its_row_is_refused() {
    for event in [CREATED, ENDED, PAID, HELD] {
        assert_eq!(refused(confirmed(), |case| fact_mut(case, event).content += 1), ["I8 content"]);
    }
    assert_eq!(refused(cancelled(), |case| fact_mut(case, PAID_BACK).content += 1), ["I8 content"]);
    assert_eq!(refused(cancelled(), |case| fact_mut(case, HELD).content += 1), ["I8 content"]);
    let declined = case("cancelled", "declined", "rejected");
    assert_eq!(refused(declined, |case| fact_mut(case, PAID).content += 1), ["I8 content"]);
}

#[test]
fn a_row_that_does_not_record_what_it_published_is_refused() {
    let off = refused(confirmed(), |case| case.payment.as_mut().unwrap().answer_event_id = None);
    assert!(has(&off, "I11 unrecorded") && has(&off, "I11 foreign"), "{off:?}");
    let off = refused(cancelled(), |case| case.payment.as_mut().unwrap().undo_event_id = None);
    assert!(has(&off, "I11 unrecorded"), "{off:?}");
}

#[test]
fn a_history_with_an_event_too_few_too_many_or_twice_is_refused() {
    let both = ["I3 audit", "I7 history"];
    assert_eq!(refused(confirmed(), |case| drop(case.history.pop())), both);
    let off = refused(confirmed(), |case| {
        case.history.push(line(case, id(77), &orders::CANCELLED));
    });
    assert_eq!(off, both);
    assert_eq!(refused(confirmed(), |case| case.history.push(case.history[0].clone())), both);
}

#[test]
fn a_history_that_comes_to_something_else_than_the_order_is_refused() {
    let of = |change: fn(&mut OrderRow)| {
        let change = |case: &mut Case| change(case.order.as_mut().unwrap());
        refused(confirmed(), change)
    };
    assert!(has(&of(|order| order.payment = "refunded".into()), "I3 audit"));
    assert!(has(&of(|order| order.status = "pending".into()), "I3 audit"));
    assert_eq!(of(|order| order.ended_at = Some(now() + TimeDelta::seconds(1))), ["I3 audit"]);
    let off = refused(cancelled(), |case| {
        case.order.as_mut().unwrap().reason = Some("deadline".into());
        fact_mut(case, ENDED).content = Says::cancelled("deadline");
    });
    assert_eq!(off, ["I3 audit"]);

    // What cannot be, in whatever row it ends.
    let out_of_turn = |case: &mut Case| case.history.iter_mut().for_each(|row| row.position *= -1);
    assert_eq!(refused(confirmed(), out_of_turn), ["I3 audit"]);
    let confirmed_early = |case: &mut Case| case.history[1].position = 0;
    assert_eq!(
        refused(confirmed(), |case| {
            case.history[0].position = -1;
            confirmed_early(case);
        }),
        ["I3 audit"]
    );
    let undone_early = |case: &mut Case| {
        let undo = case.history.iter_mut().find(|row| row.event == "payments.refunded").unwrap();
        undo.position = 1;
    };
    assert_eq!(refused(cancelled(), undone_early), ["I3 audit"]);
}

#[test]
fn what_was_announced_again_is_no_repeat_and_belongs_to_no_trace_of_its_past() {
    let again = |fact: &Fact| {
        let place = Place { offset: fact.place.offset + 50, ..fact.place };
        Fact { place, trace: 9, announced: true, ..*fact }
    };
    let mut beside = confirmed();
    let announced: Vec<Fact> = beside.facts.iter().map(again).collect();
    beside.facts.extend(announced);
    let (tally, findings) = checked(&beside);
    assert_eq!((findings.count(), tally.repeats, tally.facts), (0, 0, 8));
    beside.facts[4].content += 1;
    assert_eq!(checked(&beside).1.kinds(), ["I8 content"], "it says what was said");

    // The broker lost its disk: what was announced caused the rest.
    let mut alone = confirmed();
    *fact_mut(&mut alone, CREATED) = again(fact_mut(&mut alone, CREATED));
    fact_mut(&mut alone, HELD).trace = 9;
    assert_eq!(checked(&alone).1.count(), 0);
    let mut first = confirmed();
    fact_mut(&mut first, HELD).trace = 9;
    assert_eq!(checked(&first).1.kinds(), ["I15 trace"], "nothing was announced here");
}

#[test]
fn what_an_event_causes_is_in_its_trace() {
    for event in [ENDED, PAID, HELD] {
        assert_eq!(refused(confirmed(), |case| fact_mut(case, event).trace = 2), ["I15 trace"]);
    }
    for command in ["customer", "deadline"] {
        let mut cancelled = case("cancelled", "refunded", "void");
        for event in [ENDED, PAID_BACK, GIVEN_BACK] {
            fact_mut(&mut cancelled, event).trace = 2;
        }
        assert_eq!(checked(&cancelled).1.kinds(), ["I15 trace"]);
        cancelled.order.as_mut().unwrap().reason = Some(command.into());
        cancelled.history[1].detail = serde_json::json!({ "reason": command });
        fact_mut(&mut cancelled, ENDED).content = Says::cancelled(command);
        assert_eq!(checked(&cancelled).1.count(), 0);
    }
}

#[test]
fn a_foreign_record_must_be_among_the_dead_letters_of_all_who_read_its_topic() {
    let place = Place { topic: topic_number(&orders::CREATED), partition: 1, offset: 5 };
    let foreign = Foreign { place, hash: [1; 32], reason: "it is empty".into() };
    let off = |letters: &Letters, readers: &[&str]| {
        let mut findings = Findings::default();
        check_foreign(&foreign, readers, letters, &mut findings);
        findings.count()
    };
    let (mut letters, both) = (Letters::default(), ["payment", "stock"]);
    assert_eq!(off(&letters, &both), 2);
    letters.add(place, "payment", [1; 32]);
    letters.add(place, "stock", [2; 32]);
    assert_eq!(off(&letters, &both), 1, "stock's letter is of other bytes");
    letters.add(place, "stock", [1; 32]);
    assert_eq!(off(&letters, &both), 0);
    assert_eq!(off(&letters, &[]), 1, "nobody reads it, so nobody sets it aside");
}
