//! What the events of other services cause, and what the commands of clients do. Each handler is a pure function from
//! an event or a command and the rows in memory to what is published.

use chassis::{Command, Decision, HandlerContext, HandlerResult, Outcome, unprocessable};
use events::orders::{OrderCancelled, OrderCreated};
use events::payments::{PaymentDeclined, PaymentRefunded, PaymentVerified};

use crate::payment::{Deposit, Ledger, Payment, Reason, State};

/// The largest sum of all deposits of one account. The sum includes what was taken from the account, so a refund,
/// which must not be refused, cannot overflow.
pub const DEPOSITED_MAX_CENTS: i64 = 1_000_000_000_000_000;

/// The answer to an order.
#[derive(Debug, PartialEq, Outcome)]
pub enum PaymentOutcome {
    Verified(PaymentVerified),
    Declined(PaymentDeclined),
}

/// `orders.created` → `payments.verified` | `payments.declined`
///
/// A payment provider must not be called here, because no network call belongs inside a transaction. It takes two
/// steps: one event requests the payment, and another event reports its result.
pub fn verify_payment(
    order: &OrderCreated,
    ledger: &mut Ledger,
    context: HandlerContext,
) -> HandlerResult<PaymentOutcome> {
    if ledger.payment(order.order_id).is_some() {
        return Ok(None); // answered before, or cancelled before it arrived
    }
    let OrderCreated { order_id, customer_id, total_cents: amount_cents, .. } = *order;
    if amount_cents < 0 {
        unprocessable!("order {order_id} has a total of {amount_cents} cents");
    }
    let reason = match ledger.account(customer_id) {
        None => Some(Reason::NoAccount),
        Some(account) if account.currency != order.currency => Some(Reason::CurrencyMismatch),
        Some(account) if account.balance_cents < amount_cents => Some(Reason::InsufficientFunds),
        Some(_) => None,
    };

    let mut payment = Payment {
        order_id,
        state: State::Declined,
        customer_id: Some(customer_id),
        amount_cents,
        currency: Some(order.currency.clone()),
        reason,
        response_event_id: Some(context.event_id),
        compensation_event_id: None,
        created_at: context.now,
        updated_at: context.now,
    };
    let answer = match reason {
        None => {
            ledger.debit(customer_id, amount_cents);
            payment.state = State::Verified;
            PaymentOutcome::Verified(payment.verified())
        }
        Some(_) => PaymentOutcome::Declined(payment.declined()),
    };
    ledger.put_payment(payment);
    Ok(Some(answer))
}

/// `orders.cancelled` → `payments.refunded`, unless the payment was declined
pub fn refund_payment(
    order: &OrderCancelled,
    ledger: &mut Ledger,
    context: HandlerContext,
) -> HandlerResult<PaymentRefunded> {
    let order_id = order.order_id;
    let undone = match ledger.payment(order_id).cloned() {
        Some(Payment { state: State::Declined | State::Refunded | State::Void, .. }) => {
            return Ok(None);
        }
        Some(payment) => {
            if let Some(customer_id) = payment.customer_id {
                ledger.credit(customer_id, payment.amount_cents);
            }
            let compensation_event_id = Some(context.event_id);
            Payment {
                state: State::Refunded,
                compensation_event_id,
                updated_at: context.now,
                ..payment
            }
        }
        // The cancellation overtook its order. The row is a tombstone: it prevents that the order is paid for later.
        None => Payment {
            order_id,
            state: State::Void,
            customer_id: None,
            amount_cents: 0,
            currency: None,
            reason: None,
            response_event_id: None,
            compensation_event_id: Some(context.event_id),
            created_at: context.now,
            updated_at: context.now,
        },
    };
    let refunded = undone.refunded();
    ledger.put_payment(undone);
    Ok(Some(refunded))
}

/// Why a command is refused.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    LimitExceeded,
    CurrencyMismatch,
}

/// Takes a deposit. The first deposit opens the account. It publishes nothing.
impl Command for Deposit {
    type Aggregate = Ledger;
    type Output = Deposit;
    type Event = ();
    type Refusal = Refusal;

    fn decide(&self, ledger: &mut Ledger, context: HandlerContext) -> Decision<Self> {
        let account = ledger.account(self.customer_id);
        if account.is_some_and(|account| account.currency != self.currency) {
            return Err(Refusal::CurrencyMismatch);
        }
        let deposited = account.map_or(0, |account| account.deposited_cents);
        match deposited.checked_add(self.amount_cents) {
            Some(sum) if sum <= DEPOSITED_MAX_CENTS => {
                ledger.deposit(self, context.now);
                let location = format!("/accounts/{}", self.customer_id);
                Ok(Self::created(location, self.clone()))
            }
            _ => Err(Refusal::LimitExceeded),
        }
    }
}
