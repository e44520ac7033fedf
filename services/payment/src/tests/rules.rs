//! The rules of payment, by table and by property.

use std::collections::BTreeMap;

use events::payments::{DeclineReason, PaymentDeclined, PaymentVerified};
use proptest::prelude::*;

use super::*;
use crate::payment::{Account, Deposit, Payment, Reason, State};
use crate::saga::{DEPOSITED_MAX_CENTS, PaymentOutcome, Refusal};

fn deposit(customer_id: Uuid, amount_cents: i64) -> Deposit {
    Deposit { deposit_id: Uuid::now_v7(), customer_id, amount_cents, currency: euros() }
}

/// An account with 1,000 cents, 300 of them taken; and what was done for the order, if anything.
fn ledger(state: Option<State>) -> Ledger {
    let mut ledger = Ledger::default();
    ledger.deposit(&deposit(CUSTOMER, 1_000), context(0).now);
    ledger.debit(CUSTOMER, 300);
    if let Some(state) = state {
        let void = state == State::Void;
        ledger.put_payment(Payment {
            order_id: ORDER,
            state,
            customer_id: (!void).then_some(CUSTOMER),
            amount_cents: if void { 0 } else { 300 },
            currency: (!void).then(euros),
            reason: (state == State::Declined).then_some(Reason::InsufficientFunds),
            response_event_id: (!void).then(Uuid::max),
            compensation_event_id: matches!(state, State::Refunded | State::Void).then(Uuid::max),
            created_at: context(0).now,
            updated_at: context(0).now,
        });
    }
    ledger
}

fn rows(ledger: &Ledger) -> (Option<Account>, Option<Payment>) {
    (ledger.account(CUSTOMER).cloned(), ledger.payment(ORDER).cloned())
}

/// Deposited, there, taken.
fn counts(ledger: &Ledger) -> (i64, i64, i64) {
    let account = ledger.account(CUSTOMER).unwrap();
    (account.deposited_cents, account.balance_cents, account.taken_cents)
}

#[test]
fn a_new_order_is_paid_if_the_balance_suffices() {
    for total_cents in [0, 1, 700] {
        let mut ledger = ledger(None);
        let order = created(ORDER, CUSTOMER, total_cents, "EUR");
        let answer = saga::verify_payment(&order, &mut ledger, context(1)).unwrap();
        let (currency, occurred_at) = (euros(), context(1).now);
        let yes =
            PaymentVerified { order_id: ORDER, amount_cents: total_cents, currency, occurred_at };
        assert_eq!(answer, Some(PaymentOutcome::Verified(yes)));
        assert_eq!(counts(&ledger), (1_000, 700 - total_cents, 300 + total_cents));
        let row = ledger.payment(ORDER).unwrap();
        assert_eq!(
            (row.state, row.customer_id, row.amount_cents),
            (State::Verified, Some(CUSTOMER), total_cents)
        );
        assert_eq!(
            (row.response_event_id, row.compensation_event_id),
            (Some(context(1).event_id), None)
        );
        assert_eq!((row.currency.as_deref(), &row.reason), (Some("EUR"), &None));
    }
}

#[test]
fn an_order_that_cannot_be_paid_takes_nothing_and_is_declined_with_a_reason() {
    let stranger = Uuid::from_u128(9);
    for (customer_id, total_cents, currency, reason, stored_reason) in [
        (CUSTOMER, 701, "EUR", DeclineReason::InsufficientFunds, Reason::InsufficientFunds),
        (CUSTOMER, i64::MAX, "EUR", DeclineReason::InsufficientFunds, Reason::InsufficientFunds),
        (stranger, 1, "EUR", DeclineReason::NoAccount, Reason::NoAccount),
        (CUSTOMER, 1, "CHF", DeclineReason::CurrencyMismatch, Reason::CurrencyMismatch),
    ] {
        let mut ledger = ledger(None);
        let before = rows(&ledger).0;
        let order = created(ORDER, customer_id, total_cents, currency);
        let answer = saga::verify_payment(&order, &mut ledger, context(1)).unwrap();
        let no = PaymentDeclined { order_id: ORDER, reason, occurred_at: context(1).now };
        assert_eq!(answer, Some(PaymentOutcome::Declined(no)));
        assert_eq!(rows(&ledger).0, before);
        let row = ledger.payment(ORDER).unwrap();
        assert_eq!((row.state, row.reason), (State::Declined, Some(stored_reason)));
        assert_eq!(
            (row.response_event_id, row.compensation_event_id),
            (Some(context(1).event_id), None)
        );
    }
}

#[test]
fn an_order_already_answered_or_cancelled_gets_no_second_response() {
    for state in [State::Verified, State::Declined, State::Refunded, State::Void] {
        let mut ledger = ledger(Some(state));
        let before = rows(&ledger);
        let order = created(ORDER, CUSTOMER, 300, "EUR");
        assert_eq!(saga::verify_payment(&order, &mut ledger, context(1)), Ok(None), "{state:?}");
        assert_eq!(rows(&ledger), before, "{state:?}");
    }
}

#[test]
fn an_order_with_a_negative_total_is_unprocessable() {
    let mut ledger = ledger(None);
    let before = rows(&ledger);
    for total_cents in [-1, i64::MIN] {
        saga::verify_payment(
            &created(ORDER, CUSTOMER, total_cents, "EUR"),
            &mut ledger,
            context(1),
        )
        .unwrap_err();
        assert_eq!(rows(&ledger), before);
    }
}

#[test]
fn a_cancelled_order_gets_its_money_back() {
    let mut ledger = ledger(Some(State::Verified));
    let event = saga::refund_payment(&cancelled(ORDER), &mut ledger, context(1)).unwrap().unwrap();
    assert_eq!((event.order_id, event.occurred_at), (ORDER, context(1).now));
    assert_eq!((event.amount_cents, event.currency), (Some(300), Some(euros())));
    assert_eq!(counts(&ledger), (1_000, 1_000, 0));
    let row = ledger.payment(ORDER).unwrap();
    assert_eq!(
        (row.state, row.compensation_event_id),
        (State::Refunded, Some(context(1).event_id))
    );
    assert_eq!((row.response_event_id, row.amount_cents), (Some(Uuid::max()), 300));
    assert_eq!((row.created_at, row.updated_at), (context(0).now, context(1).now));
}

#[test]
fn a_cancellation_that_overtakes_its_order_leaves_a_tombstone() {
    let mut ledger = ledger(None);
    let account = rows(&ledger).0;
    let event = saga::refund_payment(&cancelled(ORDER), &mut ledger, context(1)).unwrap().unwrap();
    assert_eq!((event.order_id, event.amount_cents, event.currency), (ORDER, None, None));
    let row = ledger.payment(ORDER).unwrap();
    assert_eq!((row.state, row.customer_id, row.amount_cents), (State::Void, None, 0));
    assert_eq!(
        (row.response_event_id, row.compensation_event_id),
        (None, Some(context(1).event_id))
    );
    let late = saga::verify_payment(&created(ORDER, CUSTOMER, 1, "EUR"), &mut ledger, context(2));
    assert_eq!(late, Ok(None));
    assert_eq!(rows(&ledger).0, account);
}

#[test]
fn nothing_is_compensated_twice_or_after_a_rejection() {
    for state in [State::Declined, State::Refunded, State::Void] {
        let mut ledger = ledger(Some(state));
        let before = rows(&ledger);
        assert_eq!(
            saga::refund_payment(&cancelled(ORDER), &mut ledger, context(1)),
            Ok(None),
            "{state:?}"
        );
        assert_eq!(rows(&ledger), before, "{state:?}");
    }
}

#[test]
fn the_first_deposit_opens_the_account_and_the_next_adds_to_it() {
    let mut ledger = Ledger::default();
    for (nth, cents) in [(1, 5), (2, 7)] {
        let deposit = deposit(CUSTOMER, cents);
        let accepted = deposit.decide(&mut ledger, context(nth)).unwrap();
        assert_eq!(
            (accepted.output, accepted.location),
            (deposit, Some(format!("/accounts/{CUSTOMER}")))
        );
    }
    assert_eq!(counts(&ledger), (12, 12, 0));
}

#[test]
fn a_refused_deposit_changes_nothing() {
    let francs = Deposit { currency: "CHF".into(), ..deposit(CUSTOMER, 1) };
    for (deposit, answer) in [
        (deposit(CUSTOMER, DEPOSITED_MAX_CENTS), Err(Refusal::LimitExceeded)),
        (deposit(CUSTOMER, i64::MAX), Err(Refusal::LimitExceeded)),
        // What was taken counts, since it may be refunded.
        (deposit(CUSTOMER, DEPOSITED_MAX_CENTS - 999), Err(Refusal::LimitExceeded)),
        (francs, Err(Refusal::CurrencyMismatch)),
        (deposit(CUSTOMER, DEPOSITED_MAX_CENTS - 1_000), Ok(())),
    ] {
        let mut ledger = ledger(Some(State::Verified));
        let before = rows(&ledger);
        assert_eq!(deposit.decide(&mut ledger, context(1)).map(drop), answer);
        match answer {
            Ok(()) => {
                saga::refund_payment(&cancelled(ORDER), &mut ledger, context(2)).unwrap();
                assert_eq!(counts(&ledger), (DEPOSITED_MAX_CENTS, DEPOSITED_MAX_CENTS, 0));
            }
            Err(_) => assert_eq!(rows(&ledger), before),
        }
    }
}

/// What may happen to a ledger.
#[derive(Clone, Debug)]
enum Operation {
    Created(usize),
    Cancelled(usize),
    Deposited(usize, i64),
}

const ORDERS: usize = 5;
const CUSTOMERS: usize = 2;

fn operations() -> impl Strategy<Value = Vec<Operation>> {
    let amount =
        prop_oneof![4 => 1..500_i64, 1 => Just(DEPOSITED_MAX_CENTS - 400), 1 => Just(i64::MAX)];
    let operation = prop_oneof![
        4 => (0..ORDERS).prop_map(Operation::Created),
        3 => (0..ORDERS).prop_map(Operation::Cancelled),
        3 => (0..CUSTOMERS, amount).prop_map(|(nth, cents)| Operation::Deposited(nth, cents)),
    ];
    prop::collection::vec(operation, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(400) })]

    /// Whatever arrives, in whatever order and however often: no cent is lost or created, no order gets a
    /// second answer or a second refund, and what is refused changes nothing.
    #[test]
    fn money_is_conserved_and_orders_are_answered_once(
        orders in prop::collection::vec((0..CUSTOMERS, -1..400_i64), ORDERS),
        operations in operations(),
    ) {
        let mut ledger = Ledger::default();
        let mut deposited = [0_i64; CUSTOMERS];
        let (mut answers, mut undos) = (BTreeMap::new(), BTreeMap::new());
        let order_id = |nth: usize| Uuid::from_u128(nth as u128);
        let customer_id = |nth: usize| Uuid::from_u128(100 + nth as u128);
        let all = |ledger: &Ledger| {
            let accounts: Vec<_> = (0..CUSTOMERS).map(|nth| ledger.account(customer_id(nth)).cloned()).collect();
            let payments: Vec<_> = (0..ORDERS).map(|nth| ledger.payment(order_id(nth)).cloned()).collect();
            (accounts, payments)
        };
        for (now, operation) in operations.into_iter().enumerate() {
            let before = all(&ledger);
            let context = context(now as u128 + 1);
            let nothing_may_change = match operation {
                Operation::Created(nth) => {
                    let (customer, total_cents) = orders[nth];
                    let order = created(order_id(nth), customer_id(customer), total_cents, "EUR");
                    match saga::verify_payment(&order, &mut ledger, context) {
                        Ok(Some(_)) => {
                            *answers.entry(nth).or_insert(0) += 1;
                            prop_assert_eq!(ledger.payment(order_id(nth)).unwrap().response_event_id, Some(context.event_id));
                            false
                        }
                        Ok(None) | Err(_) => true,
                    }
                }
                Operation::Cancelled(nth) => match saga::refund_payment(&cancelled(order_id(nth)), &mut ledger, context).unwrap() {
                    Some(_) => {
                        *undos.entry(nth).or_insert(0) += 1;
                        prop_assert_eq!(ledger.payment(order_id(nth)).unwrap().compensation_event_id, Some(context.event_id));
                        false
                    }
                    None => true,
                },
                Operation::Deposited(nth, amount_cents) => {
                    match deposit(customer_id(nth), amount_cents).decide(&mut ledger, context) {
                        Ok(_) => {
                            deposited[nth] += amount_cents;
                            false
                        }
                        Err(_) => true,
                    }
                }
            };
            if nothing_may_change {
                prop_assert_eq!(&all(&ledger), &before);
            }
            for (nth, deposited) in deposited.into_iter().enumerate() {
                let Some(account) = ledger.account(customer_id(nth)) else { continue };
                let payments = (0..ORDERS).filter_map(|nth| ledger.payment(order_id(nth)));
                let taken: i64 = payments
                    .filter(|row| row.state == State::Verified && row.customer_id == Some(customer_id(nth)))
                    .map(|row| row.amount_cents)
                    .sum();
                prop_assert!(account.balance_cents >= 0 && deposited <= DEPOSITED_MAX_CENTS);
                prop_assert_eq!((account.deposited_cents, account.taken_cents), (deposited, taken));
                prop_assert_eq!(account.deposited_cents, account.balance_cents + account.taken_cents);
            }
            for (nth, was) in before.1.iter().enumerate() {
                let (was, is) = (was.as_ref().map(|row| row.state), ledger.payment(order_id(nth)).map(|row| row.state));
                let moves_down = matches!((was, is), (None, _) | (Some(State::Verified), Some(State::Refunded)));
                prop_assert!(was == is || moves_down, "{:?} became {:?}", was, is);
            }
        }
        prop_assert!(answers.values().chain(undos.values()).all(|times| *times == 1));
    }
}

/// A `load` that forgets a row is a mistake in the code: the event would state a refund that no account got. The
/// panic becomes a dead letter.
#[test]
#[should_panic = "account is not among the rows"]
fn moving_money_of_an_account_that_was_not_loaded_panics() {
    let mut forgetful = Ledger::default();
    forgetful.put_payment(ledger(Some(State::Verified)).payment(ORDER).unwrap().clone());
    let _ = saga::refund_payment(&cancelled(ORDER), &mut forgetful, context(1));
}

#[test]
fn the_impact_of_discarding_an_event_is_stated() {
    let (order, cancel) = (created(ORDER, CUSTOMER, 300, "EUR"), cancelled(ORDER));
    for state in [
        None,
        Some(State::Verified),
        Some(State::Declined),
        Some(State::Refunded),
        Some(State::Void),
    ] {
        let ledger = ledger(state);
        let loss = discard::order(&order, &ledger);
        assert_eq!(loss.remedy.is_some(), state.is_none(), "{state:?}: {loss:?}");
        assert_eq!(loss.write_offs, []);
        let loss = discard::cancellation(&cancel, &ledger);
        let write_offs: Vec<(i64, &str)> =
            loss.write_offs.iter().map(|w| (w.amount, w.unit.as_str())).collect();
        let due: &[(i64, &str)] = match state {
            Some(State::Verified) => &[(300, "EUR cents")],
            // The amount is unknown yet.
            None => &[(0, "cents")],
            Some(_) => &[],
        };
        assert_eq!(write_offs, due, "{state:?}: {loss:?}");
    }
}
