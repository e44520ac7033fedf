//! Each violation, made by hand, is refused by the check that is meant for it; and what is right is
//! not refused.

use chrono::TimeDelta;

use super::*;
use crate::balances::{
    AccountRow, Described, Goods, ItemRow, Money, check_account, check_item, check_totals,
};
use crate::facts::{Place, topic_number};
use crate::inboxes::{InboxCheck, InboxRow, enters};

fn id(number: u128) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + number)
}

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp_micros(1_795_132_800_000_000).unwrap()
}

const CREATED: u128 = 11;
const ENDED: u128 = 12;
const PAID: u128 = 13;
const PAID_BACK: u128 = 14;
const HELD: u128 = 15;
const GIVEN_BACK: u128 = 16;

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

fn payment(state: &str) -> PaymentRow {
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

fn reservation(state: &str) -> ReservationRow {
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
fn case(status: &str, payment_state: &str, stock_state: &str) -> Case {
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
            announced: false,
        });
    }
    assert_eq!(none.count(), 0);
    case
}

fn checked(case: &Case) -> (Tally, Findings) {
    checked_with(case, &Letters::default())
}

fn checked_with(case: &Case, letters: &Letters) -> (Tally, Findings) {
    let (mut tally, mut findings) = (Tally::default(), Findings::default());
    let around = Around { letters, kept_since: now() - TimeDelta::days(13) };
    check_case(case, &around, &mut tally, &mut findings);
    (tally, findings)
}

/// What a change to a right case is refused for.
fn refused(mut case: Case, change: impl FnOnce(&mut Case)) -> Vec<&'static str> {
    change(&mut case);
    checked(&case).1.kinds()
}

fn confirmed() -> Case {
    case("confirmed", "verified", "reserved")
}

fn cancelled() -> Case {
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
    assert_eq!(checked(&pending).1.kinds(), ["open"]);
    pending.reservation = None;
    pending.order.as_mut().unwrap().stock = "waiting".into();
    pending.history.retain(|row| row.event_id != id(HELD));
    pending.facts.retain(|fact| fact.event_id != id(HELD));
    assert_eq!(checked(&pending).1.kinds(), ["open"]);
    assert_eq!(checked(&case("cancelled", "verified", "rejected")).1.kinds(), ["open"]);
    assert_eq!(checked(&case("confirmed", "verified", "released")).1.kinds(), ["audit", "open"]);
}

#[test]
fn services_that_disagree_are_refused() {
    let off = refused(confirmed(), |case| case.payment = Some(payment("refunded")));
    assert!(off.contains(&"disagreement"), "{off:?}");
    let off = refused(confirmed(), |case| case.reservation = None);
    assert!(off.contains(&"disagreement"), "{off:?}");
    let off = refused(confirmed(), |case| case.order = None);
    assert!(off.contains(&"ghost"), "{off:?}");
}

#[test]
fn amounts_and_lines_that_differ_are_refused() {
    // The record says what the row says, so that only the disagreement with the order is left.
    let off = refused(confirmed(), |case| {
        case.payment.as_mut().unwrap().amount_cents = 999;
        fact_mut(case, PAID).content = Says::paid(999, "EUR");
    });
    assert_eq!(off, ["amounts"]);
    let off = refused(confirmed(), |case| {
        case.payment.as_mut().unwrap().currency = Some("USD".into());
        fact_mut(case, PAID).content = Says::paid(1000, "USD");
    });
    assert_eq!(off, ["amounts"]);
    let off =
        refused(confirmed(), |case| case.payment.as_mut().unwrap().customer_id = Some(id(99)));
    assert_eq!(off, ["amounts"]);
    let off = refused(confirmed(), |case| {
        let reservation = case.reservation.as_mut().unwrap();
        reservation.lines[0].quantity = 7;
        let content = Says::lines(&reservation.lines);
        fact_mut(case, HELD).content = content;
    });
    assert_eq!(off, ["lines"]);
    let off = refused(confirmed(), |case| {
        let order = case.order.as_mut().unwrap();
        order.total_cents = 1001;
        case.payment.as_mut().unwrap().amount_cents = 1001;
    });
    assert!(off.contains(&"amounts") && off.contains(&"content"), "{off:?}");
}

fn fact_mut(case: &mut Case, event: u128) -> &mut Fact {
    case.facts.iter_mut().find(|fact| fact.event_id == id(event)).unwrap()
}

#[test]
fn an_event_that_is_in_no_topic_is_lost_unless_it_is_older_than_its_topic() {
    for event in [CREATED, ENDED, PAID, HELD] {
        let gone = |case: &mut Case| case.facts.retain(|fact| fact.event_id != id(event));
        assert_eq!(refused(confirmed(), gone), ["lost"]);
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
    assert_eq!(off, ["foreign", "lost"]);
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
    assert_eq!(checked(&case).1.kinds(), ["foreign"]);
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
    assert_eq!(checked_with(&case, &letters).1.kinds(), ["dead letters"]);
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
    assert_eq!(checked(&case).1.kinds(), ["content"]);
}

#[test]
fn a_record_that_says_something_else_than_its_row_is_refused() {
    for event in [CREATED, ENDED, PAID, HELD] {
        assert_eq!(refused(confirmed(), |case| fact_mut(case, event).content += 1), ["content"]);
    }
    assert_eq!(refused(cancelled(), |case| fact_mut(case, PAID_BACK).content += 1), ["content"]);
    assert_eq!(refused(cancelled(), |case| fact_mut(case, HELD).content += 1), ["content"]);
    let declined = case("cancelled", "declined", "rejected");
    assert_eq!(refused(declined, |case| fact_mut(case, PAID).content += 1), ["content"]);
}

#[test]
fn a_row_that_does_not_record_what_it_published_is_refused() {
    let off = refused(confirmed(), |case| case.payment.as_mut().unwrap().answer_event_id = None);
    assert!(off.contains(&"unrecorded") && off.contains(&"foreign"), "{off:?}");
    let off = refused(cancelled(), |case| case.payment.as_mut().unwrap().undo_event_id = None);
    assert!(off.contains(&"unrecorded"), "{off:?}");
}

#[test]
fn a_history_with_an_event_too_few_too_many_or_twice_is_refused() {
    let both = ["audit", "history"];
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
    assert!(of(|order| order.payment = "refunded".into()).contains(&"audit"));
    assert!(of(|order| order.status = "pending".into()).contains(&"audit"));
    assert_eq!(of(|order| order.ended_at = Some(now() + TimeDelta::seconds(1))), ["audit"]);
    let off = refused(cancelled(), |case| {
        case.order.as_mut().unwrap().reason = Some("deadline".into());
        fact_mut(case, ENDED).content = Says::cancelled("deadline");
    });
    assert_eq!(off, ["audit"]);

    // What cannot be, in whatever row it ends.
    let out_of_turn = |case: &mut Case| case.history.iter_mut().for_each(|row| row.position *= -1);
    assert_eq!(refused(confirmed(), out_of_turn), ["audit"]);
    let confirmed_early = |case: &mut Case| case.history[1].position = 0;
    assert_eq!(
        refused(confirmed(), |case| {
            case.history[0].position = -1;
            confirmed_early(case);
        }),
        ["audit"]
    );
    let undone_early = |case: &mut Case| {
        let undo = case.history.iter_mut().find(|row| row.event == "payments.refunded").unwrap();
        undo.position = 1;
    };
    assert_eq!(refused(cancelled(), undone_early), ["audit"]);
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
    assert_eq!(checked(&beside).1.kinds(), ["content"], "it says what was said");

    // The broker lost its disk: what was announced caused the rest.
    let mut alone = confirmed();
    *fact_mut(&mut alone, CREATED) = again(fact_mut(&mut alone, CREATED));
    fact_mut(&mut alone, HELD).trace = 9;
    assert_eq!(checked(&alone).1.count(), 0);
    let mut first = confirmed();
    fact_mut(&mut first, HELD).trace = 9;
    assert_eq!(checked(&first).1.kinds(), ["trace"], "nothing was announced here");
}

#[test]
fn what_an_event_causes_is_in_its_trace() {
    for event in [ENDED, PAID, HELD] {
        assert_eq!(refused(confirmed(), |case| fact_mut(case, event).trace = 2), ["trace"]);
    }
    let mut by_customer = case("cancelled", "refunded", "void");
    for event in [ENDED, PAID_BACK, GIVEN_BACK] {
        fact_mut(&mut by_customer, event).trace = 2;
    }
    assert_eq!(checked(&by_customer).1.kinds(), ["trace"]);
    by_customer.order.as_mut().unwrap().reason = Some("customer".into());
    by_customer.history[1].detail = serde_json::json!({ "reason": "customer" });
    fact_mut(&mut by_customer, ENDED).content = Says::cancelled("customer");
    assert_eq!(checked(&by_customer).1.count(), 0);
}

#[test]
fn a_foreign_record_must_be_among_the_dead_letters_of_all_who_read_its_topic() {
    let place = Place { topic: topic_number(&orders::CREATED), partition: 1, offset: 5 };
    let foreign = Foreign { place, hash: [1; 32], reason: "it is empty".into() };
    let off = |letters: &Letters, foreign: &Foreign| {
        let mut findings = Findings::default();
        check_foreign(foreign, letters, &mut findings);
        findings.count()
    };
    let mut letters = Letters::default();
    assert_eq!(off(&letters, &foreign), 2);
    letters.add(place, "payment", [1; 32]);
    letters.add(place, "stock", [2; 32]);
    assert_eq!(off(&letters, &foreign), 1, "stock's letter is of other bytes");
    letters.add(place, "stock", [1; 32]);
    assert_eq!(off(&letters, &foreign), 0);
    // Nobody reads this one, until somebody makes a service that does.
    let elsewhere = Place { topic: topic_number(&orders::CONFIRMED), ..place };
    let elsewhere = Foreign { place: elsewhere, ..foreign };
    assert_eq!(off(&letters, &elsewhere) as usize, orders::CONFIRMED.subscribers.len());
}

#[test]
fn money_that_does_not_balance_is_refused() {
    let right = AccountRow {
        customer_id: id(2),
        deposits_cents: 500,
        verified_cents: 200,
        deposited_cents: Some(500),
        balance_cents: Some(300),
        taken_cents: Some(200),
    };
    let off = |row: &AccountRow| {
        let (mut money, mut findings) = (Money::default(), Findings::default());
        check_account(row, &mut money, &mut findings);
        findings.kinds()
    };
    assert!(off(&right).is_empty());
    assert_eq!(off(&AccountRow { deposits_cents: 499, ..right.clone() }), ["money"]);
    assert_eq!(off(&AccountRow { verified_cents: 100, ..right.clone() }), ["money"]);
    assert_eq!(off(&AccountRow { balance_cents: Some(301), ..right.clone() }), ["money"]);
    assert_eq!(off(&AccountRow { deposited_cents: None, ..right.clone() }), ["money"]);
    let negative = AccountRow {
        verified_cents: 600,
        balance_cents: Some(-100),
        taken_cents: Some(600),
        ..right
    };
    assert_eq!(off(&negative), ["negative"]);

    let money = Money { taken_cents: 200, ..Money::default() };
    let mut findings = Findings::default();
    check_totals(&money, &Tally { confirmed_cents: 200, ..Tally::default() }, &mut findings);
    assert_eq!(findings.count(), 0);
    check_totals(&money, &Tally { confirmed_cents: 100, ..Tally::default() }, &mut findings);
    assert_eq!(findings.kinds(), ["money"]);
}

#[test]
fn an_item_that_does_not_balance_or_is_announced_differently_is_refused() {
    let described = Described {
        sku: "pen".into(),
        name: "Pen".into(),
        price_cents: 150,
        currency: "EUR".into(),
        version: 2,
    };
    let right = ItemRow {
        sku: "pen".into(),
        deliveries: 10,
        held: 4,
        name: Some("Pen".into()),
        price_cents: Some(150),
        currency: Some("EUR".into()),
        version: Some(2),
        delivered: Some(10),
        available: Some(6),
        reserved: Some(4),
        event_id: Some(id(5)),
    };
    let newest = (id(5), described.clone());
    let off = |row: &ItemRow, newest: Option<&(Uuid, Described)>, known: Option<&Described>| {
        let (mut goods, mut findings) = (Goods::default(), Findings::default());
        check_item(row, newest, known, &mut goods, &mut findings);
        findings.kinds()
    };
    assert!(off(&right, Some(&newest), Some(&described)).is_empty());
    let row = ItemRow { deliveries: 9, ..right.clone() };
    assert_eq!(off(&row, Some(&newest), Some(&described)), ["stock"]);
    let row = ItemRow { held: 3, ..right.clone() };
    assert_eq!(off(&row, Some(&newest), Some(&described)), ["stock"]);
    let row = ItemRow { available: Some(7), ..right.clone() };
    assert_eq!(off(&row, Some(&newest), Some(&described)), ["stock"]);
    let row = ItemRow { held: 11, available: Some(-1), reserved: Some(11), ..right.clone() };
    assert_eq!(off(&row, Some(&newest), Some(&described)), ["negative"]);
    let older = (id(4), described.clone());
    assert_eq!(off(&right, Some(&older), Some(&described)), ["item"]);
    assert_eq!(off(&right, None, Some(&described)), ["item"]);
    assert_eq!(off(&right, Some(&newest), None), ["item"]);
    let stale = Described { version: 1, ..described };
    assert_eq!(off(&right, Some(&newest), Some(&stale)), ["item"]);
}

#[test]
fn an_inbox_holds_each_event_of_its_topics_and_nothing_else() {
    let facts = confirmed().facts;
    let mut heard: Vec<&Fact> =
        facts.iter().filter(|fact| enters("order", fact.place.topic())).collect();
    heard.sort_by_key(|fact| fact.event_id);
    let row = |event: u128, topic: &Topic| InboxRow {
        event_id: id(event),
        topic: topic.name.into(),
        received_at: now(),
    };
    let right = [row(PAID, &payments::VERIFIED), row(HELD, &stock::RESERVED)];
    let check = |rows: &[InboxRow], heard: &[&Fact], letters: &Letters| {
        let around = Around { letters, kept_since: now() - TimeDelta::days(13) };
        let (mut check, mut findings) =
            (InboxCheck::new("order", heard, &around), Findings::default());
        rows.iter().for_each(|row| check.row(row, &mut findings));
        check.end(&mut findings);
        (check.matched, findings.count())
    };
    let none = Letters::default();
    assert_eq!(check(&right, &heard, &none), (2, 0));
    assert_eq!(check(&right[..1], &heard, &none), (1, 1), "one was never handled");
    let mut letters = Letters::default();
    letters.add(heard[1].place, "order", [0; 32]);
    assert_eq!(check(&right[..1], &heard, &letters), (1, 0), "it is a dead letter");
    let wrong = [row(PAID, &payments::DECLINED), right[1].clone()];
    assert_eq!(check(&wrong, &heard, &none), (2, 1), "entered for another topic");
    let unknown = [right[0].clone(), right[1].clone(), row(99, &stock::RESERVED)];
    assert_eq!(check(&unknown, &heard, &none), (2, 1), "it is in no topic");
    let mut old = unknown.clone();
    old[2].received_at = now() - TimeDelta::days(20);
    assert_eq!(check(&old, &heard, &none), (2, 0), "its topic has forgotten it");
    let twice = [heard[0], heard[0], heard[1]];
    assert_eq!(check(&right, &twice, &none), (2, 0), "a repeat in the topic is handled once");
}

#[test]
fn of_each_kind_the_first_twenty_are_shown_and_all_are_counted() {
    let mut findings = Findings::default();
    (0..30).for_each(|nth| findings.add("lost", || nth.to_string()));
    let (kind, count, shown) = findings.iter().next().unwrap();
    assert_eq!((kind, count, shown.len()), ("lost", 30, 20));
}
