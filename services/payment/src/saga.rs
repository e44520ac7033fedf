//! What other services' events cause here, and what clients' commands do: pure functions from an
//! event or a command and the rows in memory to what is published.

use chassis::event::{Answer, At, Outcome, Outgoing};
use chassis::impossible;
use chassis::loss::Loss;
use events::orders::{OrderCancelled, OrderCreated};
use events::payments::{DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified};

use crate::payment::{Deposit, Ledger, Payment, State, in_words};

/// An account takes in so much at most, what is taken from it included: a refund, which may not be
/// refused, then can't overflow.
pub const DEPOSITED_MAX_CENTS: i64 = 1_000_000_000_000_000;

/// The answer to an order.
#[derive(Debug, PartialEq)]
pub enum Paying {
    Verified(PaymentVerified),
    Declined(PaymentDeclined),
}

impl Outcome for Paying {
    fn publish(self) -> Option<Outgoing> {
        match self {
            Paying::Verified(event) => event.publish(),
            Paying::Declined(event) => event.publish(),
        }
    }
}

/// `orders.created` → `payments.verified` | `payments.declined`
///
/// A payment provider would not be called from here: that takes two steps, the request published
/// and the reply heard, since no network call belongs inside a transaction.
pub fn verify_payment(order: &OrderCreated, ledger: &mut Ledger, at: At) -> Answer<Paying> {
    if ledger.payment(order.order_id).is_some() {
        return Ok(None); // answered before, or cancelled before it was heard of
    }
    let OrderCreated { order_id, customer_id, total_cents: amount_cents, .. } = *order;
    if amount_cents < 0 {
        impossible!("order {order_id} has a total of {amount_cents} cents");
    }
    let no = match ledger.account(customer_id) {
        None => Some(DeclineReason::NoAccount),
        Some(account) if account.currency != order.currency => {
            Some(DeclineReason::CurrencyMismatch)
        }
        Some(account) if account.balance_cents < amount_cents => {
            Some(DeclineReason::InsufficientFunds)
        }
        Some(_) => None,
    };

    let mut payment = Payment {
        order_id,
        state: State::Declined,
        customer_id: Some(customer_id),
        amount_cents,
        currency: Some(order.currency.clone()),
        reason: no.map(|reason| in_words(reason).into()),
        answer_event_id: Some(at.event_id),
        undo_event_id: None,
        created_at: at.now,
        updated_at: at.now,
    };
    let answer = match no {
        None => {
            ledger.take(customer_id, amount_cents);
            payment.state = State::Verified;
            Paying::Verified(payment.verified())
        }
        Some(_) => Paying::Declined(payment.declined()),
    };
    ledger.put_payment(payment);
    Ok(Some(answer))
}

/// `orders.cancelled` → `payments.refunded`, unless payment had said no
pub fn refund_payment(
    order: &OrderCancelled,
    ledger: &mut Ledger,
    at: At,
) -> Answer<PaymentRefunded> {
    let order_id = order.order_id;
    let undone = match ledger.payment(order_id).cloned() {
        Some(Payment { state: State::Declined | State::Refunded | State::Void, .. }) => {
            return Ok(None);
        }
        Some(payment) => {
            if let Some(customer_id) = payment.customer_id {
                ledger.take(customer_id, -payment.amount_cents);
            }
            let undo_event_id = Some(at.event_id);
            Payment { state: State::Refunded, undo_event_id, updated_at: at.now, ..payment }
        }
        // The cancellation overtook its order: the row keeps the order from being paid for later.
        None => Payment {
            order_id,
            state: State::Void,
            customer_id: None,
            amount_cents: 0,
            currency: None,
            reason: None,
            answer_event_id: None,
            undo_event_id: Some(at.event_id),
            created_at: at.now,
            updated_at: at.now,
        },
    };
    let refunded = undone.refunded();
    ledger.put_payment(undone);
    Ok(Some(refunded))
}

/// Why a command is refused.
#[derive(Debug, PartialEq)]
pub enum Refusal {
    TooMuch,
    OtherCurrency,
}

/// The command that takes in a deposit; the first opens the account. It publishes nothing.
pub fn take_in(deposit: &Deposit, ledger: &mut Ledger, at: At) -> Result<(), Refusal> {
    let account = ledger.account(deposit.customer_id);
    if account.is_some_and(|account| account.currency != deposit.currency) {
        return Err(Refusal::OtherCurrency);
    }
    let deposited = account.map_or(0, |account| account.deposited_cents);
    match deposited.checked_add(deposit.amount_cents) {
        Some(sum) if sum <= DEPOSITED_MAX_CENTS => {
            ledger.deposit(deposit, at.now);
            Ok(())
        }
        _ => Err(Refusal::TooMuch),
    }
}

/// What it costs to discard an `orders.created` that payment can't handle.
pub fn order_discarded(order: &OrderCreated, ledger: &Ledger) -> Loss {
    let order_id = order.order_id;
    if ledger.payment(order_id).is_some() {
        return Loss::that(format!("Nothing is lost: payment has answered order {order_id}."));
    }
    Loss::that(format!("Payment never answers order {order_id}, which may never end.")).offering(
        "cancels the order, so that it ends",
        "order",
        format!("/orders/{order_id}/cancel"),
    )
}

/// What it costs to discard an `orders.cancelled` that payment can't handle.
pub fn cancellation_discarded(order: &OrderCancelled, ledger: &Ledger) -> Loss {
    let order_id = order.order_id;
    match ledger.payment(order_id) {
        Some(Payment { state: State::Verified, amount_cents, currency, .. }) => {
            let unit = format!("{} cents", currency.as_deref().unwrap_or("unknown"));
            Loss::that(format!(
                "What was taken for order {order_id} is never given back to its customer, and the \
                 order's payment never reads as undone."
            ))
            .writing_off(
                format!("the refund of order {order_id}"),
                *amount_cents,
                unit,
            )
        }
        Some(_) => Loss::that(format!(
            "Nothing is lost: nothing is taken for order {order_id}, or it was given back."
        )),
        // The amount is not known here: nothing yet.
        None => Loss::that(format!(
            "Payment has not heard of order {order_id}. Should it still, it takes the money for a \
             cancelled order and never gives it back."
        ))
        .writing_off(
            format!("the refund of order {order_id}, if it is paid for"),
            0,
            "cents",
        ),
    }
}
