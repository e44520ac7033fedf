//! Each invariant is violated by hand, one violation at a time, and it is that invariant which refuses
//! it. What a running stack shows (who relays, who died, what is left, what it takes up) is made by
//! hand here as well, as it would have been seen.

use std::collections::{BTreeSet, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use events::orders;

use super::*;
use crate::balances::tests::{right_account, right_item};
use crate::balances::{AccountRow, Described, Goods, ItemRow, Money};
use crate::changes::{Change, Changes};
use crate::checks::Tally;
use crate::checks::tests::{
    CREATED, ENDED, HELD, PAID, PAID_BACK, cancelled, case, checked, checked_with, confirmed,
    fact_mut, id,
};
use crate::client::Wish;
use crate::ends::End;
use crate::facts::{Fact, Foreign, Letter, Letters, Place, topic_number};
use crate::findings::Findings;
use crate::footprint::{
    CONNECTIONS_MAX, Database, Footprint, MEMORY_BYTES_KEPT, OUTBOX_BYTES_KEPT,
};
use crate::history::Summary;
use crate::inboxes::{InboxCheck, InboxRow};
use crate::leaders::{self, Leaders};
use crate::outcome::{Answer, Outcome};
use crate::plan::Plan;
use crate::told::{self, Cancel, Stored, Told, Try};
use crate::topics::Log;
use crate::{arrivals, balances, ends, rest, verify};

type Violation = (Invariant, &'static str, fn() -> Findings);

const VIOLATIONS: [Violation; 56] = [
    (I1, "an acknowledged order is not there", || asked(&[yes(1)], &[])),
    (I1, "what was acknowledged cannot be read", || asked(&[answered(201, "{}"), yes(1)], &[1])),
    (I1, "a cancel is answered with something else", || {
        let told = Told { cancel: Cancel::Denied(404), ..client(&[yes(1)]) };
        Summary::of(&[told], Duration::ZERO).findings
    }),
    (I1, "a refused order is there", || asked(&[no(503)], &[1])),
    (I1, "of a client in doubt there are two", || asked(&[doubt()], &[1, 2])),
    (I2, "one key, two orders", || asked(&[yes(1)], &[1, 2])),
    (I2, "a client in doubt has two orders", || asked(&[doubt(), yes(1)], &[1, 2])),
    (I2, "two keys are told of one order", || {
        let others = Plan { key: "another".to_string(), ..client(&[yes(1)]).plan };
        let other = Told { plan: others, ..client(&[yes(1)]) };
        asked_by(&[client(&[yes(1)]), other], &[1])
    }),
    (I2, "the same request is answered differently", || summed(&[yes(1), answered(201, "{}")])),
    (I2, "a request is taken, and then refused", || summed(&[yes(1), no(409)])),
    (I2, "another request under the same key is taken", || confused(yes(2))),
    (I2, "another request is refused for another reason", || confused(no(409))),
    (I2, "another request is refused with another status", || confused(reused(409))),
    (I3, "an order is pending", || checked(&case("pending", "verified", "reserved")).1),
    (I3, "a leg has not ended", || checked(&case("cancelled", "verified", "rejected")).1),
    (I3, "a history comes to something else", || {
        of_case(|case| case.history.iter_mut().for_each(|row| row.position *= -1))
    }),
    (I3, "what had ended changed", || {
        let rows = ["confirmed", "cancelled"];
        changed(&rows.map(|status| ("orders", [status, "verified", "reserved"])))
    }),
    (I3, "a leg fell back", || {
        let rows = ["verified", "waiting"];
        changed(&rows.map(|payment| ("orders", ["pending", payment, "waiting"])))
    }),
    (I4, "the order says something else than payment", || {
        of_case(|case| case.payment = None).only(I4)
    }),
    (I4, "the order service knows an item differently", || item(|_, known| known.version = 1)),
    (I5, "an account does not balance", || account(|row| row.balance_cents = Some(301))),
    (I5, "a balance was negative for a moment", || {
        changed(&[("accounts", ["-1", "0", ""]), ("accounts", ["1", "0", ""])])
    }),
    (I5, "more is taken than orders cost", || {
        let mut findings = Findings::default();
        let money = Money { taken_cents: 1, ..Money::default() };
        balances::check_totals(&money, &Tally::default(), &mut findings);
        findings
    }),
    (I6, "an item does not balance", || item(|row, _| row.held = 3)),
    (I6, "goods were negative for a moment", || {
        changed(&[("items", ["-1", "0", ""]), ("items", ["1", "0", ""])])
    }),
    (I7, "an event was never handled", || handled(&confirmed().facts[2..3])),
    (I7, "an order was entered, and payment has nothing of it", || {
        let mut case = confirmed();
        case.payment = None;
        entered(&case, CREATED)
    }),
    (I7, "a cancellation was entered, and nothing was refunded", || {
        entered(&case("cancelled", "verified", "rejected"), ENDED)
    }),
    (I7, "a history has an event twice", || {
        of_case(|case| case.history.push(case.history[3].clone())).only(I7)
    }),
    (I7, "money moved that no answer explains", || changed(&[("accounts", ["5", "7", ""])])),
    (I7, "goods moved that no answer explains", || changed(&[("items", ["5", "7", ""])])),
    (I7, "a payment was refunded twice", || {
        let rows = ["verified", "refunded", "refunded"];
        changed(&rows.map(|state| ("payments", [state, "", "0"])))
    }),
    (I8, "an event is in no topic", || {
        of_case(|case| case.facts.retain(|fact| fact.event_id != id(HELD)))
    }),
    (I8, "a record says something else than its row", || {
        of_case(|case| fact_mut(case, PAID).content += 1)
    }),
    (I8, "a confirmation, which nobody reads, says something else than its order", || {
        of_case(|case| fact_mut(case, ENDED).content += 1)
    }),
    (I9, "a cancellation arrived before its order", || overtaking(CREATED, ENDED)),
    (I9, "a refund arrived before its payment", || overtaking(PAID, PAID_BACK)),
    (I9, "an item's version arrived after the next", || {
        recorded(|log, place| log.overtaken.push((place, "version 2 came before 1".into())))
    }),
    (I9, "two relays were active", || {
        let (mut leaders, mut findings) = (Leaders::default(), Findings::default());
        [1, 2, 2, 2].into_iter().for_each(|active| leaders.saw("stock", active));
        leaders.check(&mut findings);
        findings
    }),
    (I9, "records came twice without a fault", || {
        let mut findings = Findings::default();
        leaders::check_undisturbed(&Tally { repeats: 1, ..Tally::default() }, &mut findings);
        findings
    }),
    (I10, "what nobody had spoiled is a dead letter", || {
        let mut findings = Findings::default();
        let (hash, reason) = ([0; 32], "the lock was not free".to_string());
        let state = "waiting".to_string();
        let letter = Letter { place: place(5), service: "stock", hash, state, reason };
        verify::check_letters(&[letter], &[place(4)].into(), &mut findings);
        findings
    }),
    (I10, "an order's event waits among the dead letters", || {
        let (case, mut letters) = (confirmed(), Letters::default());
        letters.add(case.facts[0].place, "payment", [0; 32]);
        letters.add_waiting(case.facts[0].place);
        checked_with(&case, &letters).1
    }),
    (I10, "poison was dropped", || poisoned(&["stock"])),
    (I11, "payment has an order that nobody placed", || {
        of_case(|case| case.order = None).only(I11)
    }),
    (I11, "an order was confirmed once more, as another event", || {
        of_case(|case| {
            let again = Fact { event_id: id(99), ..*fact_mut(case, ENDED) };
            case.facts.push(again);
        })
    }),
    (I12, "an envelope is wrong", || {
        recorded(|log, place| log.faults.push((place, "its key is another".into())))
    }),
    (I12, "what nobody reads yet cannot be read", || poisoned(&[])),
    (I13, "something is left to read", || {
        let mut findings = Findings::default();
        rest::check(vec!["stock has 3 records of orders.created to read".into()], &mut findings);
        findings
    }),
    (I13, "nobody says what becomes of another request", || confused(no(503))),
    (I14, "a request failed within a service", || {
        let Outcome::Refused(answer) = no(500) else { unreachable!() };
        summed(&[Outcome::Failed(answer), yes(1)])
    }),
    (I14, "somebody died", || {
        let (at, mut findings) = (DateTime::default(), Findings::default());
        let end = End { name: "stock".into(), pid: 1, at, status: 101, cause: None };
        ends::check(&[end.clone(), end], 1, &mut findings);
        findings
    }),
    (I15, "an answer is not in its order's trace", || {
        of_case(|case| fact_mut(case, PAID).trace = 2)
    }),
    (I16, "a process keeps a byte too many", || {
        taking_up(|now| {
            *now.memory_bytes.get_mut("stock").unwrap() = 36_000_001 + MEMORY_BYTES_KEPT
        })
    }),
    (I16, "a service has a connection too many", || {
        taking_up(|now| stock(now).connections = CONNECTIONS_MAX + 1)
    }),
    (I16, "a row is left in an outbox", || taking_up(|now| stock(now).outbox_rows = 1)),
    (I16, "an outbox keeps a byte too many", || {
        taking_up(|now| stock(now).outbox_bytes = 12_001 + OUTBOX_BYTES_KEPT)
    }),
];

impl Findings {
    /// Of a violation that cannot but violate something else too.
    fn only(self, violated: Invariant) -> Findings {
        let mut only = Findings::default();
        for (_, kind, _, shown) in self.iter().filter(|(of, ..)| *of == violated) {
            shown.iter().for_each(|what| only.add(violated, kind, || what.clone()));
        }
        only
    }
}

#[test]
fn each_violation_is_refused_by_the_invariant_meant_for_it_and_by_no_other() {
    for (meant, what, violated) in VIOLATIONS {
        let findings = violated();
        assert_eq!(findings.violated(), BTreeSet::from([meant]), "{what}: {findings:?}");
    }
}

#[test]
fn every_invariant_has_a_violation_made_by_hand_and_says_what_it_means() {
    let made: BTreeSet<Invariant> = VIOLATIONS.into_iter().map(|(meant, ..)| meant).collect();
    assert_eq!(made, BTreeSet::from(Invariant::ALL));
    let means: HashSet<&str> = Invariant::ALL.into_iter().map(Invariant::means).collect();
    assert_eq!(means.len(), Invariant::ALL.len());
}

#[test]
fn what_is_right_violates_none() {
    let right = [
        asked(&[yes(1), yes(1)], &[1]),
        asked(&[doubt()], &[1]),
        asked(&[doubt()], &[]),
        asked(&[no(422)], &[]),
        confused(reused(422)),
        checked(&confirmed()).1,
        changed(&[
            ("orders", ["pending", "waiting", "waiting"]),
            ("orders", ["pending", "waiting", "reserved"]),
            ("orders", ["cancelled", "waiting", "reserved"]),
            ("orders", ["cancelled", "refunded", "reserved"]),
            ("orders", ["cancelled", "refunded", "released"]),
        ]),
        changed(&[("payments", ["verified", "2", "7"]), ("accounts", ["5", "7", ""])]),
        changed(&[("payments", ["refunded", "2", "7"])]),
        changed(&[
            ("reservations", ["reserved", r#"[{"sku": "2", "quantity": 3}]"#, ""]),
            ("items", ["5", "3", ""]),
            ("reservations", ["released", r#"[{"sku": "2", "quantity": 3}]"#, ""]),
            ("items", ["8", "0", ""]),
        ]),
        taking_up(|_| ()),
        entered(&confirmed(), CREATED),
        entered(&cancelled(), ENDED),
    ];
    for (nth, findings) in right.iter().enumerate() {
        assert!(findings.is_empty(), "{nth}: {findings:?}");
    }
}

#[test]
fn what_a_stack_takes_up_may_come_to_each_bound_and_not_beyond() {
    let to_bound = taking_up(|now| {
        now.memory_bytes.insert("stock".into(), 36_000_000 + MEMORY_BYTES_KEPT);
        // It was not there before.
        now.memory_bytes.insert("stock-2".into(), MEMORY_BYTES_KEPT);
        (stock(now).instances, stock(now).connections) = (2, 2 * CONNECTIONS_MAX);
        stock(now).outbox_bytes = 12_000 + OUTBOX_BYTES_KEPT;
    });
    assert_eq!(to_bound.kinds(), [""; 0], "{to_bound:?}");
    let beyond = taking_up(|now| {
        now.memory_bytes.insert("stock-2".into(), MEMORY_BYTES_KEPT + 1);
    });
    assert_eq!(beyond.kinds(), ["I16 memory"]);
}

/// What stock took up before, and after a change.
fn taking_up(change: fn(&mut Footprint)) -> Findings {
    let database = Database { instances: 1, connections: 17, outbox_rows: 0, outbox_bytes: 10_000 };
    let databases = [("stock".to_string(), database)].into();
    let memory_bytes = [("stock".to_string(), 30_000_000)].into();
    let before = Footprint { memory_bytes, databases };
    let (mut now, mut findings) = (before.clone(), Findings::default());
    change(&mut now);
    now.check(&before, &mut findings);
    findings
}

fn stock(now: &mut Footprint) -> &mut Database {
    now.databases.get_mut("stock").unwrap()
}

fn answered(status: u16, body: &str) -> Outcome {
    let body = body.as_bytes().to_vec();
    let answer = Answer { status, location: None, content_type: String::new(), body };
    if (200..300).contains(&status) { Outcome::Ok(answer) } else { Outcome::Refused(answer) }
}

fn yes(order: u128) -> Outcome {
    let order = serde_json::json!({
        "order_id": id(order), "customer_id": id(2), "status": "pending", "reason": null,
        "payment": "waiting", "stock": "waiting", "total_cents": 150, "currency": "EUR",
        "lines": [], "created_at": DateTime::<Utc>::default(), "ended_at": null,
    });
    answered(201, &order.to_string())
}

fn no(status: u16) -> Outcome {
    answered(status, r#"{"type": "/problems/unavailable"}"#)
}

fn reused(status: u16) -> Outcome {
    answered(status, r#"{"type": "/problems/idempotency-key-reused"}"#)
}

fn doubt() -> Outcome {
    Outcome::Unknown("cut".to_string())
}

/// A client who was told this, one answer after the other.
fn client(outcomes: &[Outcome]) -> Told {
    let plan = Plan {
        at: Duration::ZERO,
        key: "key".to_string(),
        customer_id: id(2),
        lines: wishes(),
        cancel_after: None,
        repeated: false,
        confused: false,
        hung_up_after: None,
    };
    let tries = outcomes.iter().cloned();
    let tries = tries.map(|outcome| Try { outcome, answered_at: Duration::ZERO });
    Told::new(&plan, tries.collect())
}

fn wishes() -> Vec<Wish> {
    vec![Wish { sku: "pen".to_string(), quantity: 1 }]
}

/// One client was told this, and these orders of its are there.
fn asked(outcomes: &[Outcome], there: &[u128]) -> Findings {
    asked_by(&[client(outcomes)], there)
}

fn asked_by(clients: &[Told], there: &[u128]) -> Findings {
    let stored =
        |order: &u128| Stored { order_id: id(*order), customer_id: id(2), lines: wishes() };
    let (stored, mut findings): (Vec<Stored>, _) =
        (there.iter().map(stored).collect(), Findings::default());
    told::check(clients, &stored, &mut findings);
    findings
}

/// One client sent something else with its key, and was told this.
fn confused(other: Outcome) -> Findings {
    let told = Told { other: Some(other), ..client(&[yes(1)]) };
    let stored = Stored { order_id: id(1), customer_id: id(2), lines: wishes() };
    let mut findings = Findings::default();
    told::check(&[told], &[stored], &mut findings);
    findings
}

fn summed(outcomes: &[Outcome]) -> Findings {
    Summary::of(&[client(outcomes)], Duration::ZERO).findings
}

/// A confirmed order that is right but for a change.
fn of_case(change: fn(&mut crate::checks::Case)) -> Findings {
    let mut case = confirmed();
    change(&mut case);
    checked(&case).1
}

/// A cancelled order of which one event arrived before the other, which was made first.
fn overtaking(made: u128, later: u128) -> Findings {
    let mut case = cancelled();
    let made_ms = fact_mut(&mut case, made).appended_ms;
    fact_mut(&mut case, later).appended_ms = made_ms - 1;
    checked(&case).1
}

/// A row of each table that became this, all in one transaction; the first order was there before.
fn changed(rows: &[(&str, [&str; 3])]) -> Findings {
    let (mut changes, mut findings) = (Changes::default(), Findings::default());
    for (nth, (what, became)) in rows.iter().enumerate() {
        let tx = if nth == 0 && *what == "orders" { 0 } else { 1 };
        let became = Some(became.iter().map(|column| Some(column.to_string())).collect());
        changes.next(
            &Change { tx, what: what.to_string(), key: "2".to_string(), became },
            &mut findings,
        );
    }
    changes.end(&mut findings);
    findings
}

fn account(change: fn(&mut AccountRow)) -> Findings {
    let mut row = right_account();
    change(&mut row);
    let mut findings = Findings::default();
    balances::check_account(&row, &mut Money::default(), &mut findings);
    findings
}

fn item(change: fn(&mut ItemRow, &mut Described)) -> Findings {
    let (mut row, mut known) = right_item();
    let newest = (id(5), known.clone());
    change(&mut row, &mut known);
    let (mut goods, mut findings) = (Goods::default(), Findings::default());
    balances::check_item(&row, Some(&newest), Some(&known), &mut goods, &mut findings);
    findings
}

/// An inbox that is empty, though these lie in the topics.
fn handled(facts: &[Fact]) -> Findings {
    let (letters, mut findings) = (Letters::default(), Findings::default());
    let (around, none) = (around(&letters), BTreeSet::new());
    let heard: Vec<&Fact> = facts.iter().collect();
    InboxCheck::new("order", &heard, &around, &none).end(&mut findings);
    findings
}

/// An inbox of payment that has the order of a case, or its cancellation.
fn entered(case: &crate::checks::Case, event: u128) -> Findings {
    let (tally, letters, mut findings) = (checked(case).0, Letters::default(), Findings::default());
    let around = around(&letters);
    let fact = *case.facts.iter().find(|fact| fact.event_id == id(event)).unwrap();
    let (heard, topic) = ([&fact], fact.place.topic().name.to_string());
    let row = InboxRow { event_id: id(event), topic, received_at: DateTime::default() };
    let mut check = InboxCheck::new("payment", &heard, &around, &tally.unanswered);
    check.row(&row, &mut findings);
    findings
}

fn recorded(change: fn(&mut Log, Place)) -> Findings {
    let (mut log, letters, mut findings) =
        (Log::default(), Letters::default(), Findings::default());
    change(&mut log, place(5));
    verify::check_records(&log, &around(&letters), &mut findings);
    findings
}

/// A record that is none of ours, in a topic that these read, and set aside by none of them.
fn poisoned(readers: &[&str]) -> Findings {
    let (letters, mut findings) = (Letters::default(), Findings::default());
    let foreign = Foreign { place: place(5), hash: [1; 32], reason: "it is empty".into() };
    arrivals::check_foreign(&foreign, readers, &letters, &mut findings);
    findings
}

fn around(letters: &Letters) -> crate::checks::Around<'_> {
    crate::checks::Around { letters, kept_since: DateTime::default(), clocks_apart_ms: 0 }
}

fn place(offset: i64) -> Place {
    Place { topic: topic_number(&orders::CREATED), partition: 1, offset }
}
