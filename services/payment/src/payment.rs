//! The aggregate: accounts, and what was taken from them for which order.

use chassis::{Loads, PublishedEvent, Record, Republish, Table, UnitOfWork, WriteBatch};
use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use events::orders::{OrderCancelled, OrderCreated};
use events::payments::{
    DECLINED, DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified, REFUNDED, VERIFIED,
};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

/// A customer's account.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "accounts", key = "customer_id")]
pub struct Account {
    pub customer_id: Uuid,
    #[record(immutable)]
    pub currency: String,
    pub deposited_cents: i64,
    pub balance_cents: i64,
    pub taken_cents: i64,
}

/// What payment did for an order, and what it said.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "payments", key = "order_id")]
// The answer stays; it can be undone once.
pub struct Payment {
    pub order_id: Uuid,
    pub state: State,
    #[record(immutable)]
    #[schema(required)]
    pub customer_id: Option<Uuid>,
    #[record(immutable)]
    pub amount_cents: i64,
    #[record(immutable)]
    #[schema(required)]
    pub currency: Option<String>,
    #[record(immutable)]
    #[schema(required)]
    pub reason: Option<String>,
    #[record(immutable)]
    #[serde(skip)]
    pub response_event_id: Option<Uuid>,
    #[serde(skip)]
    pub compensation_event_id: Option<Uuid>,
    #[record(immutable)]
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Where a payment stands. Only what was verified is ever left again, when it is refunded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum State {
    /// The total was taken.
    Verified,
    /// Nothing was taken.
    Declined,
    /// It was taken and is back.
    Refunded,
    /// The cancellation came before the order: a tombstone.
    Void,
}

/// What the row says is what its events said: they are made from it, the first time and every time.
impl Payment {
    pub fn verified(&self) -> PaymentVerified {
        PaymentVerified {
            order_id: self.order_id,
            amount_cents: self.amount_cents,
            currency: self.currency.clone().unwrap_or_default(),
            occurred_at: self.created_at,
        }
    }

    pub fn declined(&self) -> PaymentDeclined {
        let reason = self.reason.as_deref().map_or(DeclineReason::Unknown, parse_decline_reason);
        PaymentDeclined { order_id: self.order_id, reason, occurred_at: self.created_at }
    }

    /// Of nothing where nothing had been taken.
    pub fn refunded(&self) -> PaymentRefunded {
        let taken = self.response_event_id.map(|_| self.amount_cents);
        PaymentRefunded {
            order_id: self.order_id,
            amount_cents: taken,
            currency: self.currency.clone(),
            occurred_at: self.updated_at,
        }
    }
}

/// The word that a row keeps for why a payment was declined.
pub fn decline_reason_name(reason: DeclineReason) -> &'static str {
    match reason {
        DeclineReason::InsufficientFunds => "insufficient_funds",
        DeclineReason::NoAccount => "no_account",
        DeclineReason::CurrencyMismatch => "currency_mismatch",
        DeclineReason::Unknown => "unknown",
    }
}

fn parse_decline_reason(word: &str) -> DeclineReason {
    let reasons = [
        DeclineReason::InsufficientFunds,
        DeclineReason::NoAccount,
        DeclineReason::CurrencyMismatch,
    ];
    reasons
        .into_iter()
        .find(|reason| decline_reason_name(*reason) == word)
        .unwrap_or(DeclineReason::Unknown)
}

impl Republish for Payment {
    fn topic_names() -> Vec<&'static str> {
        vec![VERIFIED.name, DECLINED.name, REFUNDED.name]
    }

    fn published_events(&self) -> Vec<PublishedEvent> {
        let response = self.response_event_id.map(|event_id| match self.state {
            State::Declined => PublishedEvent::new(event_id, self.created_at, &self.declined()),
            _ => PublishedEvent::new(event_id, self.created_at, &self.verified()),
        });
        let compensation = self
            .compensation_event_id
            .map(|event_id| PublishedEvent::new(event_id, self.updated_at, &self.refunded()));
        response.into_iter().chain(compensation).collect()
    }
}

/// Money comes in.
#[derive(Clone, Debug)]
pub struct Deposit {
    pub deposit_id: Uuid,
    pub customer_id: Uuid,
    pub amount_cents: i64,
    pub currency: String,
}

/// A deposit as its table has it.
#[derive(Record)]
#[record(table = "deposits", key = "deposit_id")]
struct DepositRow {
    deposit_id: Uuid,
    customer_id: Uuid,
    amount_cents: i64,
    created_at: DateTime<Utc>,
}

/// The rows of one batch.
#[derive(Default)]
pub struct Ledger {
    accounts: Table<Account>,
    payments: Table<Payment>,
    deposits: Vec<DepositRow>,
}

/// Which rows a batch touches.
#[derive(Default)]
pub struct Keys {
    orders: BTreeSet<Uuid>,
    customers: BTreeSet<Uuid>,
}

impl Ledger {
    /// A customer's account, if there is one.
    pub fn account(&self, customer_id: Uuid) -> Option<&Account> {
        self.accounts.get(&customer_id)
    }

    /// What was done for an order, if anything.
    pub fn payment(&self, order_id: Uuid) -> Option<&Payment> {
        self.payments.get(&order_id)
    }

    /// Notes what was done for an order.
    pub fn put_payment(&mut self, payment: Payment) {
        self.payments.put(payment);
    }

    /// Moves money from the balance to what is taken.
    pub fn debit(&mut self, customer_id: Uuid, amount_cents: i64) {
        // One that `load` forgot must not be moved in silence.
        let account = self.accounts.get_mut(&customer_id);
        let account =
            account.unwrap_or_else(|| panic!("{customer_id}'s account is not among the rows"));
        account.balance_cents -= amount_cents;
        account.taken_cents += amount_cents;
    }

    /// Moves it back.
    pub fn credit(&mut self, customer_id: Uuid, amount_cents: i64) {
        self.debit(customer_id, -amount_cents);
    }

    /// Adds money to an account, which the first deposit opens.
    pub fn deposit(&mut self, deposit: &Deposit, now: DateTime<Utc>) {
        let mut account = self.account(deposit.customer_id).cloned().unwrap_or(Account {
            customer_id: deposit.customer_id,
            currency: deposit.currency.clone(),
            deposited_cents: 0,
            balance_cents: 0,
            taken_cents: 0,
        });
        account.deposited_cents += deposit.amount_cents;
        account.balance_cents += deposit.amount_cents;
        self.accounts.put(account);
        let Deposit { deposit_id, customer_id, amount_cents, .. } = *deposit;
        self.deposits.push(DepositRow { deposit_id, customer_id, amount_cents, created_at: now });
    }
}

impl Loads<OrderCreated> for Ledger {
    fn keys(order: &OrderCreated, keys: &mut Keys) {
        keys.orders.insert(order.order_id);
        keys.customers.insert(order.customer_id);
    }
}

impl Loads<OrderCancelled> for Ledger {
    fn keys(order: &OrderCancelled, keys: &mut Keys) {
        keys.orders.insert(order.order_id);
    }
}

impl Loads<Deposit> for Ledger {
    fn keys(deposit: &Deposit, keys: &mut Keys) {
        keys.customers.insert(deposit.customer_id);
    }
}

impl UnitOfWork for Ledger {
    type Keys = Keys;

    async fn load(tx: &mut PgConnection, mut keys: Keys) -> sqlx::Result<Ledger> {
        let payments = Table::<Payment>::lock(tx, keys.orders).await?;
        // A cancellation names no customer; whose money it was stands in the payment.
        keys.customers.extend(payments.iter().filter_map(|payment| payment.customer_id));
        let accounts = Table::lock(tx, keys.customers).await?;
        Ok(Ledger { accounts, payments, deposits: Vec::new() })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.accounts).save(&self.payments).insert_all(&self.deposits);
    }
}
