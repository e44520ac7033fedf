//! Payment has an account of the customer.

use events::participants::{LegState, Payment};
use events::payments::{DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified};
use payment::State::{Declined, Refunded, Verified, Void};
use payment::{Deposit, Ledger};

use super::{Handled, Modelled, published};
use crate::rows::*;
use crate::world::{ANSWERS, EventKind, OrderState, PAYMENT, Rules, StepState};

/// In the order of [`ANSWERS`].
const STATES: [payment::State; 4] = [Verified, Declined, Refunded, Void];

impl Modelled for Payment {
    fn accepted() -> PaymentVerified {
        let (amount_cents, currency) = (TOTAL_CENTS, euros());
        PaymentVerified { order_id: ORDER, amount_cents, currency, occurred_at: context().now }
    }

    fn refused() -> PaymentDeclined {
        let reason = DeclineReason::InsufficientFunds;
        PaymentDeclined { order_id: ORDER, reason, occurred_at: context().now }
    }

    fn undone(is_void: bool) -> PaymentRefunded {
        let (amount_cents, currency) = ((!is_void).then_some(TOTAL_CENTS), (!is_void).then(euros));
        PaymentRefunded { order_id: ORDER, amount_cents, currency, occurred_at: context().now }
    }

    fn handle(
        rules: &Rules,
        (shown, available): StepState,
        kind: EventKind,
        willing: bool,
    ) -> Handled {
        let mut rows = ledger_from(&shown, willing);
        let events = match kind {
            EventKind::Created => {
                published(payment::saga::verify_payment(&created(), &mut rows, context()))
            }
            EventKind::Cancelled => {
                published(payment::saga::refund_payment(&cancelled(), &mut rows, context()))
            }
            _ => unreachable!("payment does not subscribe to {kind:?}"),
        }?;
        let account = rows.account(CUSTOMER).unwrap();
        assert_eq!(account.deposited_cents, account.balance_cents + account.taken_cents);
        assert!(account.balance_cents >= 0, "no more is taken than there is");
        let moved = account.taken_cents / TOTAL_CENTS - totals_charged(&shown);
        let mut after = shown;
        after.own[PAYMENT] = rows.payment(ORDER).map(|row| state_of(row.state));
        match moved {
            0 => {}
            1 => after.charges += 1,
            -1 => after.refunds += 1,
            _ => panic!("{moved} totals were taken at once"),
        }
        if let Some(row) = rows.payment(ORDER) {
            rules.assert_lossless(row, ledger_from(&after, true).payment(ORDER).unwrap());
        }
        Ok((after, available, events))
    }
}

fn state_of(state: payment::State) -> LegState {
    ANSWERS[STATES.iter().position(|it| *it == state).unwrap()]
}

fn totals_charged(placed: &OrderState) -> i64 {
    i64::from(placed.charges) - i64::from(placed.refunds)
}

fn ledger_from(placed: &OrderState, willing: bool) -> Ledger {
    let mut rows = Ledger::default();
    let taken_cents = totals_charged(placed) * TOTAL_CENTS;
    let amount_cents = taken_cents + if willing { TOTAL_CENTS } else { 0 };
    let deposit = Deposit {
        deposit_id: PUBLISHED_EVENT_ID,
        customer_id: CUSTOMER,
        amount_cents,
        currency: euros(),
    };
    rows.deposit(&deposit, context().now);
    rows.debit(CUSTOMER, taken_cents);
    for state in STATES.into_iter().filter(|state| placed.own[PAYMENT] == Some(state_of(*state))) {
        let void = state == Void;
        rows.put_payment(payment::Payment {
            order_id: ORDER,
            state,
            customer_id: (!void).then_some(CUSTOMER),
            amount_cents: if void { 0 } else { TOTAL_CENTS },
            currency: (!void).then(euros),
            reason: (state == Declined).then_some(payment::Reason::InsufficientFunds),
            response_event_id: (!void).then_some(PUBLISHED_EVENT_ID),
            compensation_event_id: matches!(state, Refunded | Void).then_some(PUBLISHED_EVENT_ID),
            created_at: context().now,
            updated_at: context().now,
        });
    }
    rows
}
