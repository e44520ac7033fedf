//! Differences by an erasure are accepted, and each other difference is found.

use checker::dead_letters::DeadLetterIndex;
use serde_json::json;

use super::*;
use crate::checker::orders::check_case;
use crate::checker::tally::{CheckContext, Tally};
use crate::checker::test_cases::{
    CREATED, ENDED, case, confirmed, context, expected_mut, has_finding, id, part_mut, record_mut,
};
use crate::checker::transitions::{RowChange, TransitionCheck};

const CUSTOMER: u128 = 2;
const OTHER_CUSTOMER: u128 = 3;
const REPLACEMENT: u128 = 4;

fn content(customer: u128, total_cents: i64) -> Value {
    json!({ "order_id": id(1), "customer_id": id(customer), "total_cents": total_cents })
}

/// An order whose records have the id of the customer, and whose rows have the replacement.
fn erased(mut case: OrderCase) -> OrderCase {
    for event in [CREATED, ENDED] {
        expected_mut(&mut case, event).content = content(REPLACEMENT, 1000);
        write(&mut case, event, &content(CUSTOMER, 1000));
    }
    case.order.as_mut().unwrap().customer_id = id(REPLACEMENT);
    part_mut(&mut case, "payment").customer_id = Some(id(REPLACEMENT));
    case
}

/// Changes the content of a record.
fn write(case: &mut OrderCase, event: u128, content: &Value) {
    let topic = expected_mut(case, event).topic;
    let record = record_mut(case, event);
    record.content_hash = content_hash(content);
    record.personal_hashes = personal_hashes(topic, content);
}

/// The findings about orders, where these services have journalled the replacement.
fn findings_of(cases: &[OrderCase], journals: &[&'static str]) -> Vec<String> {
    let (mut erasures, dead_letters) = (Erasures::default(), DeadLetterIndex::default());
    journals.iter().for_each(|service| erasures.add(service, id(REPLACEMENT)));
    let context = CheckContext { erasures: &erasures, ..context(&dead_letters) };
    let (mut tally, mut findings) = (Tally::default(), Findings::default());
    cases.iter().for_each(|case| check_case(case, &context, &mut tally, &mut findings));
    findings.kinds()
}

const BOTH: [&str; 2] = ["order", "payment"];

#[test]
fn a_record_may_have_the_id_that_a_journalled_replacement_stands_for() {
    let erased = erased(confirmed());
    assert_eq!(findings_of(std::slice::from_ref(&erased), &BOTH), [""; 0]);
    assert_eq!(findings_of(&[erased.clone(), erased.clone()], &BOTH), [""; 0]);
    let mut republished = erased;
    write(&mut republished, CREATED, &content(REPLACEMENT, 1000));
    assert_eq!(findings_of(&[republished], &BOTH), [""; 0], "with the replacement");
}

#[test]
fn a_difference_without_a_journal_of_each_service_is_a_violation() {
    let erased = erased(confirmed());
    for journals in [&[][..], &["order"], &["payment"], &["stock"]] {
        assert_eq!(
            findings_of(std::slice::from_ref(&erased), journals),
            ["I8 content"],
            "{journals:?}"
        );
    }
}

#[test]
fn another_difference_of_an_erased_order_is_a_violation() {
    let mut changed = erased(confirmed());
    write(&mut changed, CREATED, &content(CUSTOMER, 1001));
    assert_eq!(findings_of(&[changed], &BOTH), ["I8 content"], "another total");
    let mut mixed = erased(confirmed());
    write(&mut mixed, ENDED, &content(OTHER_CUSTOMER, 1000));
    assert_eq!(findings_of(&[mixed], &BOTH), ["I8 content"], "two customers in one order");
    let (one, mut other) = (erased(confirmed()), erased(confirmed()));
    for event in [CREATED, ENDED] {
        write(&mut other, event, &content(OTHER_CUSTOMER, 1000));
    }
    assert_eq!(findings_of(&[one, other], &BOTH), ["I8 content"], "two customers, one replacement");
    let mut half = erased(confirmed());
    part_mut(&mut half, "payment").customer_id = Some(id(CUSTOMER));
    let kinds = findings_of(&[half], &BOTH);
    assert!(has_finding(&kinds, "I5 amounts") && has_finding(&kinds, "I8 content"), "{kinds:?}");
}

#[test]
fn the_change_log_accepts_an_erasure_with_a_journalled_replacement_alone() {
    let [old, new] = [id(CUSTOMER), id(REPLACEMENT)].map(|id| id.to_string());
    let payment = |tx, customer: &str| RowChange {
        tx,
        table_name: "payments".into(),
        key: "order".into(),
        new_values: Some(["verified", customer, "1000"].map(|it| Some(it.to_string())).to_vec()),
    };
    let account = |tx, customer: &str| RowChange {
        tx,
        table_name: "accounts".into(),
        key: customer.into(),
        new_values: Some(["0", "1000"].map(|it| Some(it.to_string())).to_vec()),
    };
    let changes = [payment(1, &old), account(1, &old), payment(2, &new), account(2, &new)];
    let findings_of = |journal: &[&String]| {
        let mut check = TransitionCheck::new(journal.iter().map(|it| it.to_string()).collect());
        let mut findings = Findings::default();
        changes.iter().for_each(|change| check.check_change(change, &mut findings));
        check.finish(&mut findings);
        findings.kinds()
    };
    assert_eq!(findings_of(&[&new]), [""; 0]);
    assert_eq!(findings_of(&[]), ["I7 again", "I7 effect"]);
}

#[test]
fn a_declined_payment_names_the_customer_of_its_order() {
    let mut declined = case("cancelled", "declined", "rejected");
    part_mut(&mut declined, "payment").customer_id = Some(id(OTHER_CUSTOMER));
    assert_eq!(findings_of(&[declined], &[]), ["I5 amounts"]);
}
