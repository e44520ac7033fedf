//! What lies in the topics, held against the rows that say what was published: all of it, nothing
//! else, word for word, in the trace of what caused it, and in the order in which it was made.

use chassis::event::Topic;
use events::{orders, payments, stock};

use crate::checks::{Around, Case, Expected, Tally};
use crate::facts::{Fact, Foreign, Letters, Says};
use crate::findings::Findings;
use crate::invariants::Invariant::{I8, I9, I10, I11, I12, I15};

/// What lies in the topics is what the rows say was published, both ways.
pub fn check_facts(
    case: &Case,
    expected: &[Expected],
    around: &Around<'_>,
    tally: &mut Tally,
    findings: &mut Findings,
) {
    let id = case.order_id;
    for e in expected {
        let mut found = case.facts.iter().filter(|fact| is_of(fact, e)).peekable();
        if found.peek().is_none() {
            if e.at < around.kept_since {
                tally.expired += 1;
            } else {
                findings.add(I8, "lost", || {
                    format!("{id}: {} {} is not in its topic", e.topic.name, e.event_id)
                });
            }
            continue;
        }
        let mut first = true;
        for fact in found {
            // Of a record that is none of ours, a letter is all that there should be.
            findings.unless(!around.letters.is_waiting(fact.place), I10, "dead letters", || {
                format!("{id}: {} at {} lies among the dead letters", e.topic.name, fact.place)
            });
            tally.facts += 1;
            let repeated = u64::from(!first && !fact.announced);
            tally.repeats += repeated;
            tally.repeats_heard += repeated * u64::from(!e.topic.subscribers.is_empty());
            first &= fact.announced;
            // A reason newer than this checker can't be held against the row's.
            let is_newer = e.topic.name == orders::CANCELLED.name
                && fact.content == Says::cancelled("unknown");
            findings.unless(
                e.content.is_none_or(|content| content == fact.content || is_newer),
                I8,
                "content",
                || {
                    format!(
                        "{id}: {} at {} says something else than the row",
                        e.topic.name, fact.place
                    )
                },
            );
        }
    }
    for fact in &case.facts {
        if expected.iter().any(|e| is_of(fact, e)) {
            continue;
        }
        if around.letters.has(fact.place) {
            tally.set_aside += 1;
        } else {
            findings.add(I11, "foreign", || {
                format!(
                    "{id}: no row recorded {} at {}, and no dead letter names it",
                    fact.event_id, fact.place
                )
            });
        }
    }
    check_traces(case, expected, tally, findings);
    check_order_of_arrival(case, expected, around, findings);
}

/// What one service made of one order, in the order in which it made it: each topic's event was first
/// acknowledged before the other one's.
///
/// They lie in two topics, so offsets tell nothing of it, and the times of arrival do, which the
/// broker writes (`LogAppendTime`). They count milliseconds: of two that arrived in the same one
/// nothing can be told, and where brokers have clocks of their own nothing closer than those.
fn check_order_of_arrival(
    case: &Case,
    expected: &[Expected],
    around: &Around<'_>,
    findings: &mut Findings,
) {
    let first = |topic: &Topic| {
        let e = expected.iter().find(|e| e.topic.name == topic.name)?;
        let records = case.facts.iter().filter(|fact| is_of(fact, e));
        // Announced again because the first one is gone: when that arrived nobody knows any more.
        records.filter(|fact| !fact.announced).map(|fact| fact.appended_ms).min()
    };
    for (made, later) in [
        (&orders::CREATED, &orders::CONFIRMED),
        (&orders::CREATED, &orders::CANCELLED),
        (&payments::VERIFIED, &payments::REFUNDED),
        (&stock::RESERVED, &stock::RELEASED),
    ] {
        if let (Some(before), Some(after)) = (first(made), first(later)) {
            let early_ms = before - after;
            findings.unless(early_ms <= around.clocks_apart_ms, I9, "overtaken", || {
                format!(
                    "{}: {} arrived {early_ms} ms before {}, which was made first",
                    case.order_id, later.name, made.name
                )
            });
        }
    }
}

fn is_of(fact: &Fact, e: &Expected) -> bool {
    fact.event_id == e.event_id && fact.place.topic().name == e.topic.name
}

/// What an event causes belongs to its trace. A customer's cancel begins one of its own.
///
/// Where an event was announced again it has a second trace, and what it caused may belong to either;
/// to an unknown one only where the first record went with the broker's disk.
fn check_traces(case: &Case, expected: &[Expected], tally: &mut Tally, findings: &mut Findings) {
    let records = |topic: &Topic| {
        let e = expected.iter().find(|e| e.topic.name == topic.name);
        let event_id = e.map(|e| e.event_id);
        case.facts.iter().filter(move |fact| Some(fact.event_id) == event_id)
    };
    // A command has a trace of its own, be it a customer's or the deadline's.
    let reason = case.order.as_ref().and_then(|order| order.reason.as_deref());
    let by_command = matches!(reason, Some("customer" | "deadline"));
    let mut caused: Vec<(&Topic, &Topic)> = vec![
        (&orders::CREATED, &payments::VERIFIED),
        (&orders::CREATED, &payments::DECLINED),
        (&orders::CREATED, &stock::RESERVED),
        (&orders::CREATED, &stock::REJECTED),
        (&orders::CREATED, &orders::CONFIRMED),
        (&orders::CANCELLED, &payments::REFUNDED),
        (&orders::CANCELLED, &stock::RELEASED),
    ];
    if !by_command {
        caused.push((&orders::CREATED, &orders::CANCELLED));
    }
    let (mut links, mut all) = (0, true);
    for (cause, effect) in caused {
        let after = records(effect).find(|fact| !fact.announced);
        if let Some(after) = after
            && records(cause).any(|fact| !fact.announced)
        {
            let caused = records(cause).any(|fact| fact.trace == after.trace);
            (links, all) = (links + 1, all && caused);
            findings.unless(caused, I15, "trace", || {
                format!("{}: {} is not in the trace of {}", case.order_id, effect.name, cause.name)
            });
        }
    } // Payment's answer, stock's and the confirmation.
    let confirmed = case.order.as_ref().is_some_and(|order| order.status == "confirmed");
    tally.traced += u64::from(confirmed && links == 3 && all);
}

/// A record that is none of ours is fine only where everybody who reads its topic set it aside. Where
/// nobody reads yet, nobody can: the first who will would stumble over it.
pub fn check_foreign(
    foreign: &Foreign,
    readers: &[&str],
    letters: &Letters,
    findings: &mut Findings,
) {
    let Foreign { place, reason, .. } = foreign;
    findings.unless(!readers.is_empty(), I12, "foreign", || {
        format!("{place}: {reason}, and nobody reads its topic")
    });
    for service in readers {
        findings.unless(letters.has_exactly(foreign, service), I10, "foreign", || {
            format!("{place}: {reason}; {service} has no dead letter of it")
        });
    }
}
