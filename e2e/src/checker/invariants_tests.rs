//! Each invariant is violated by hand, one violation at a time, and the finding names that
//! invariant and no other. What only a running stack shows (active relays, exits, memory) is made
//! by hand as well.

#[path = "invariants_states_tests.rs"]
mod states;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::Duration;

use carrier::{Ledger, Parcel, Reference, State};
use checker::dead_letters::{self, DeadLetter, DeadLetterIndex};
use chrono::DateTime;
use launcher::Exit;
use uuid::Uuid;

use super::*;
use crate::checker::balances;
use crate::checker::exits;
use crate::checker::findings::Findings;
use crate::checker::quiescence;
use crate::checker::record::RecordSummary;
use crate::checker::relay_leadership::{self, RelayLeadership};
use crate::checker::shipments::{self, ShipmentRow, Shipments};
use crate::checker::tally::Tally;
use crate::checker::test_cases::{
    CREATED, ENDED, REFUNDED, RESERVED, VERIFIED, cancelled, case, checked, checked_with,
    confirmed, id, record_mut,
};
use crate::client::client_history::{CancelOutcome, ClientHistory};
use crate::client::order_plan::OrderPlan;
use crate::client::outcome::Outcome;
use crate::workload::load_summary::LoadSummary;
use crate::workload::resource_usage::{
    CONNECTIONS_PER_INSTANCE_MAX, MEMORY_ALLOWANCE_BYTES, OUTBOX_ALLOWANCE_BYTES,
};
use states::*;

type Violation = (Invariant, &'static str, fn() -> Findings);

const VIOLATIONS: [Violation; 64] = [
    (I1, "an acknowledged order is missing", || check_client(&[accepted(1)], &[])),
    (I1, "an acknowledgement cannot be parsed", || {
        check_client(&[response(201, "{}"), accepted(1)], &[1])
    }),
    (I1, "a cancellation gets an unexpected status", || {
        let history =
            ClientHistory { cancel: CancelOutcome::Unexpected(404), ..history_of(&[accepted(1)]) };
        LoadSummary::from_histories(&[history], Duration::ZERO).findings
    }),
    (I1, "a refused order is stored", || check_client(&[rejected(503)], &[1])),
    (I1, "an unknown outcome stored two orders", || check_client(&[unknown()], &[1, 2])),
    (I2, "one key created two orders", || check_client(&[accepted(1)], &[1, 2])),
    (I2, "a retry after an unknown outcome created a second order", || {
        check_client(&[unknown(), accepted(1)], &[1, 2])
    }),
    (I2, "two keys are acknowledged with one order", || {
        let others = OrderPlan { key: "another".to_string(), ..history_of(&[accepted(1)]).plan };
        let other = ClientHistory { plan: others, ..history_of(&[accepted(1)]) };
        check_clients(&[history_of(&[accepted(1)]), other], &[1])
    }),
    (I2, "a repeated request gets another response", || {
        summarize(&[accepted(1), response(201, "{}")])
    }),
    (I2, "a request is accepted, and then refused", || summarize(&[accepted(1), rejected(409)])),
    (I2, "another request with the same key is accepted", || check_reused_key(accepted(2))),
    (I2, "another request with the same key is refused for another reason", || {
        check_reused_key(rejected(409))
    }),
    (I2, "another request with the same key is refused with another status", || {
        check_reused_key(reused(409))
    }),
    (I3, "an order is pending", || checked(&case("pending", "verified", "reserved")).1),
    (I3, "a leg is pending", || checked(&case("cancelled", "verified", "rejected")).1),
    (I3, "a history folds to another state", || {
        check_case(|case| case.history.iter_mut().for_each(|row| row.position *= -1))
    }),
    (I3, "a terminal state changed", || {
        let rows = ["confirmed", "cancelled"];
        check_transitions(&rows.map(|status| ("orders", [status, "verified", "reserved"])))
    }),
    (I3, "a leg went back", || {
        let rows = ["verified", "waiting"];
        check_transitions(&rows.map(|payment| ("orders", ["pending", payment, "waiting"])))
    }),
    (I3, "an order asks a participant later", || {
        let rows = ["", "waiting"];
        check_transitions(&rows.map(|stock| ("orders", ["pending", "waiting", stock])))
    }),
    (I4, "the order disagrees with payment", || {
        only(I4, check_case(|case| drop(case.parts.remove("payment"))))
    }),
    (I4, "the order service has another item than stock", || {
        check_item(|_, known| known.version = 1)
    }),
    (I5, "an account does not balance", || check_account(|row| row.balance_cents = Some(301))),
    (I5, "a balance was negative for a moment", || {
        check_transitions(&[("accounts", ["-1", "0", ""]), ("accounts", ["1", "0", ""])])
    }),
    (I5, "payments exceed the totals of orders", || {
        let mut findings = Findings::default();
        balances::check_totals(1, &Tally::default(), &mut findings);
        findings
    }),
    (I6, "an item does not balance", || check_item(|row, _| row.held = 3)),
    (I6, "goods were negative for a moment", || {
        check_transitions(&[("items", ["-1", "0", ""]), ("items", ["1", "0", ""])])
    }),
    (I7, "an event was never handled", || check_empty_inbox(&confirmed().records[2..3])),
    (I7, "an order is in the inbox of payment, without a payment", || {
        let mut case = confirmed();
        case.parts.remove("payment");
        check_inbox_entry(&case, CREATED)
    }),
    (I7, "a cancellation is in the inbox of payment, without a refund", || {
        check_inbox_entry(&case("cancelled", "verified", "rejected"), ENDED)
    }),
    (I7, "a history contains an event twice", || {
        only(I7, check_case(|case| case.history.push(case.history[3].clone())))
    }),
    (I7, "money moved without a response", || check_transitions(&[("accounts", ["5", "7", ""])])),
    (I7, "goods moved without a response", || check_transitions(&[("items", ["5", "7", ""])])),
    (I7, "a payment was refunded twice", || {
        let rows = ["verified", "refunded", "refunded"];
        check_transitions(&rows.map(|state| ("payments", [state, "", "0"])))
    }),
    (I8, "an event is missing in its topic", || {
        check_case(|case| case.records.retain(|record| record.event_id != id(RESERVED)))
    }),
    (I8, "a record differs from its row", || {
        check_case(|case| record_mut(case, VERIFIED).content_hash += 1)
    }),
    (I8, "a confirmation, which has no subscriber, differs from its order", || {
        check_case(|case| record_mut(case, ENDED).content_hash += 1)
    }),
    (I9, "a cancellation arrived before its order", || check_reordered(CREATED, ENDED)),
    (I9, "a refund arrived before its payment", || check_reordered(VERIFIED, REFUNDED)),
    (I9, "an item's version arrived after the next", || {
        check_snapshot(|log, position| {
            log.kept.out_of_order.push((position, "version 2 came before 1".into()))
        })
    }),
    (I9, "two relays were active", || {
        let (mut leaders, mut findings) = (RelayLeadership::default(), Findings::default());
        [1, 2, 2, 2].into_iter().for_each(|active| leaders.observe("stock", active));
        leaders.check(&mut findings);
        findings
    }),
    (I9, "a record is duplicated without a fault", || {
        let mut findings = Findings::default();
        relay_leadership::check_no_duplicates(
            &Tally { duplicates: 1, ..Tally::default() },
            &mut findings,
        );
        findings
    }),
    (I10, "a valid record is a dead letter", || {
        let mut findings = Findings::default();
        let (hash, reason) = ([0; 32], "the lock was not free".to_string());
        let state = "waiting".to_string();
        let dead_letter =
            DeadLetter { position: position(5), service: "stock", hash, state, reason };
        dead_letters::check_dead_letters(&[dead_letter], &[position(4)].into(), &mut findings);
        findings
    }),
    (I10, "an order's event is an unsettled dead letter", || {
        let (case, mut dead_letters) = (confirmed(), DeadLetterIndex::default());
        dead_letters.add(case.records[0].position, "payment", [0; 32]);
        dead_letters.add_waiting(case.records[0].position);
        checked_with(&case, &dead_letters).1
    }),
    (I10, "a poison record has no dead letter", || check_poison(&["stock"])),
    (I11, "payment has an order that the order service does not have", || {
        only(I11, check_case(|case| case.order = None))
    }),
    (I11, "an order was confirmed twice, by two events", || {
        check_case(|case| {
            let again = RecordSummary { event_id: id(99), ..*record_mut(case, ENDED) };
            case.records.push(again);
        })
    }),
    (I12, "an envelope is invalid", || {
        check_snapshot(|log, position| {
            log.kept.envelope_faults.push((position, "its key is another".into()))
        })
    }),
    (I12, "a record without a subscriber does not decode", || check_poison(&[])),
    (I13, "a record is unread", || {
        let mut findings = Findings::default();
        quiescence::check(
            vec!["stock has 3 records of orders.created to read".into()],
            &mut findings,
        );
        findings
    }),
    (I13, "another request with the same key never gets a final response", || {
        check_reused_key(rejected(503))
    }),
    (I14, "a request failed within a service", || {
        let Outcome::Refused(answer) = rejected(500) else { unreachable!() };
        summarize(&[Outcome::Failed(answer), accepted(1)])
    }),
    (I14, "a process exited by itself", || {
        let (at, mut findings) = (DateTime::default(), Findings::default());
        let end = Exit { name: "stock".into(), pid: 1, at, status: 101, cause: None };
        exits::check_unexpected_exits(&[end.clone(), end], 1, &mut findings);
        findings
    }),
    (I15, "a response is not in the trace of its order", || {
        check_case(|case| record_mut(case, VERIFIED).trace_hash = 2)
    }),
    (I16, "a process keeps one byte above the bound", || {
        check_usage(|now| {
            *now.memory_bytes.get_mut("stock").unwrap() = 36_000_001 + MEMORY_ALLOWANCE_BYTES
        })
    }),
    (I16, "a service has one connection above the bound", || {
        check_usage(|now| stock_usage(now).connections = CONNECTIONS_PER_INSTANCE_MAX + 1)
    }),
    (I16, "an outbox has a row left", || check_usage(|now| stock_usage(now).outbox_rows = 1)),
    (I16, "an outbox keeps one byte above the bound", || {
        check_usage(|now| stock_usage(now).outbox_bytes = 12_001 + OUTBOX_ALLOWANCE_BYTES)
    }),
    (I17, "the carrier has two parcels of an order", || {
        check_shipment("booked", None, &[State::Booked, State::Booked])
    }),
    (I17, "the carrier has a parcel of no shipment", || {
        let (mut ledger, mut findings) = (Ledger::default(), Findings::default());
        let entry = Reference { parcels: vec![parcel(State::Booked)], ..Reference::default() };
        ledger.references.insert(Uuid::nil(), entry);
        shipments::check_ledger(&ledger, &HashMap::new(), &mut findings);
        findings
    }),
    (I17, "nothing leads to the end of a shipment", || check_shipment("stuck", None, &[])),
    (I17, "a parcel was delivered and counts as lost", || {
        check_shipment("failed", Some("lost"), &[State::Delivered])
    }),
    (I17, "a delivered parcel is unknown to the carrier", || {
        check_shipment("delivered", None, &[])
    }),
    (I17, "another parcel was delivered", || {
        check_shipment("delivered", None, &[State::Delivered])
    }),
    (I17, "the carrier has the parcel of a cancelled shipment", || {
        check_shipment("cancelled", Some("cancelled"), &[State::Collected])
    }),
];

/// The findings of one invariant, for a change that necessarily violates another one too.
fn only(violated: Invariant, findings: Findings) -> Findings {
    let mut only = Findings::default();
    for (_, kind, _, shown) in findings.iter().filter(|(of, ..)| *of == violated) {
        shown.iter().for_each(|what| only.add(violated, kind, || what.clone()));
    }
    only
}

fn parcel(state: State) -> Parcel {
    let (parcel_id, since) = (Uuid::from_u128(1), DateTime::default());
    Parcel { parcel_id, pieces: 1, state, since, webhooks: Vec::new() }
}

/// The findings of a shipment whose parcel is `Uuid::nil()`; those of the carrier are others.
fn check_shipment(state: &str, reason: Option<&str>, parcels: &[State]) -> Findings {
    let parcels = parcels.iter().copied().map(parcel);
    let row = ShipmentRow {
        state: state.to_string(),
        reason: reason.map(String::from),
        parcel_id: Some(Uuid::nil()),
        is_pending: state != "stuck",
        ..ShipmentRow::default()
    };
    let (mut shipments, mut findings) = (Shipments::default(), Findings::default());
    shipments::check_shipment(&row, Some(&Vec::from_iter(parcels)), &mut shipments, &mut findings);
    findings
}

#[test]
fn each_violation_is_found_by_its_own_invariant_and_by_no_other() {
    for (meant, what, violated) in VIOLATIONS {
        let findings = violated();
        assert_eq!(findings.violated(), BTreeSet::from([meant]), "{what}: {findings:?}");
    }
}

#[test]
fn every_invariant_has_a_violation_made_by_hand_and_a_description() {
    let made: BTreeSet<Invariant> = VIOLATIONS.into_iter().map(|(meant, ..)| meant).collect();
    assert_eq!(made, BTreeSet::from(Invariant::ALL));
    let means: HashSet<&str> = Invariant::ALL.into_iter().map(Invariant::description).collect();
    assert_eq!(means.len(), Invariant::ALL.len());
}

#[test]
fn a_valid_state_violates_no_invariant() {
    let right = [
        check_client(&[accepted(1), accepted(1)], &[1]),
        check_client(&[unknown()], &[1]),
        check_client(&[unknown()], &[]),
        check_client(&[rejected(422)], &[]),
        check_reused_key(reused(422)),
        checked(&confirmed()).1,
        check_transitions(&[
            ("orders", ["pending", "waiting", "waiting"]),
            ("orders", ["pending", "waiting", "reserved"]),
            ("orders", ["cancelled", "waiting", "reserved"]),
            ("orders", ["cancelled", "refunded", "reserved"]),
            ("orders", ["cancelled", "refunded", "released"]),
        ]),
        check_transitions(&[
            ("orders", ["pending", "waiting", ""]),
            ("orders", ["confirmed", "verified", ""]),
        ]),
        check_transitions(&[("payments", ["verified", "2", "7"]), ("accounts", ["5", "7", ""])]),
        check_transitions(&[("payments", ["refunded", "2", "7"])]),
        check_transitions(&[
            ("reservations", ["reserved", r#"[{"sku": "2", "quantity": 3}]"#, ""]),
            ("items", ["5", "3", ""]),
            ("reservations", ["released", r#"[{"sku": "2", "quantity": 3}]"#, ""]),
            ("items", ["8", "0", ""]),
        ]),
        check_usage(|_| ()),
        check_inbox_entry(&confirmed(), CREATED),
        check_inbox_entry(&cancelled(), ENDED),
    ];
    for (nth, findings) in right.iter().enumerate() {
        assert!(findings.is_empty(), "{nth}: {findings:?}");
    }
}

#[test]
fn resource_usage_may_reach_each_bound_and_not_exceed_it() {
    let to_bound = check_usage(|now| {
        now.memory_bytes.insert("stock".into(), 36_000_000 + MEMORY_ALLOWANCE_BYTES);
        // This process did not exist before.
        now.memory_bytes.insert("stock-2".into(), MEMORY_ALLOWANCE_BYTES);
        (stock_usage(now).instances, stock_usage(now).connections) =
            (2, 2 * CONNECTIONS_PER_INSTANCE_MAX);
        stock_usage(now).outbox_bytes = 12_000 + OUTBOX_ALLOWANCE_BYTES;
    });
    assert_eq!(to_bound.kinds(), [""; 0], "{to_bound:?}");
    let beyond = check_usage(|now| {
        now.memory_bytes.insert("stock-2".into(), MEMORY_ALLOWANCE_BYTES + 1);
    });
    assert_eq!(beyond.kinds(), ["I16 memory"]);
}
