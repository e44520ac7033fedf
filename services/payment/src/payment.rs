//! The aggregate: accounts, and what was taken from them for which order.

use std::collections::BTreeSet;

use chassis::{Loader, Loads, PublishedEvent, Record, Republish, Table, UnitOfWork, WriteBatch};
use chrono::{DateTime, Utc};
use events::orders::{OrderCancelled, OrderCreated};
use events::payments::{DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified};
use serde::Serialize;
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

/// What payment did for an order, and what it answered. The answer never changes. It can be undone once.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, Record, ToSchema)]
#[record(table = "payments", key = "order_id")]
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
    pub reason: Option<Reason>,
    #[record(immutable)]
    #[serde(skip)]
    pub response_event_id: Option<Uuid>,
    #[serde(skip)]
    pub compensation_event_id: Option<Uuid>,
    #[record(immutable)]
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// The state of a payment. Only a verified payment changes its state: it is refunded if its order is cancelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum State {
    /// The total was taken.
    Verified,
    /// Nothing was taken.
    Declined,
    /// The total was taken, and given back.
    Refunded,
    /// The cancellation arrived before the order, so nothing was and nothing will be taken.
    Void,
}

/// Why a payment was declined.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "snake_case")]
#[sqlx(type_name = "text", rename_all = "snake_case")]
pub enum Reason {
    /// The balance is smaller than the total.
    InsufficientFunds,
    /// The customer has no account.
    NoAccount,
    /// The account is in another currency.
    CurrencyMismatch,
}

/// The events of a payment. They are made of its row, when they are published and when they are republished: so both
/// are equal.
impl Payment {
    /// `payments.verified`
    pub fn verified(&self) -> PaymentVerified {
        PaymentVerified {
            order_id: self.order_id,
            amount_cents: self.amount_cents,
            currency: self.currency.clone().unwrap_or_default(),
            occurred_at: self.created_at,
        }
    }

    /// `payments.declined`
    pub fn declined(&self) -> PaymentDeclined {
        let reason = match self.reason {
            Some(Reason::InsufficientFunds) => DeclineReason::InsufficientFunds,
            Some(Reason::NoAccount) => DeclineReason::NoAccount,
            Some(Reason::CurrencyMismatch) => DeclineReason::CurrencyMismatch,
            None => DeclineReason::Unknown,
        };
        PaymentDeclined { order_id: self.order_id, reason, occurred_at: self.created_at }
    }

    /// `payments.refunded`, without an amount if nothing had been taken.
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

impl Republish for Payment {
    type Events = (PaymentVerified, PaymentDeclined, PaymentRefunded);

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

/// The command that takes a deposit, and what its client gets in answer.
#[derive(Clone, Debug, PartialEq, Serialize, ToSchema)]
pub struct Deposit {
    pub deposit_id: Uuid,
    pub customer_id: Uuid,
    pub amount_cents: i64,
    pub currency: String,
}

/// A row of the deposits.
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

    /// What payment did for an order, if anything.
    pub fn payment(&self, order_id: Uuid) -> Option<&Payment> {
        self.payments.get(&order_id)
    }

    /// Adds or replaces what payment did for an order.
    pub fn put_payment(&mut self, payment: Payment) {
        self.payments.put(payment);
    }

    /// Moves money from the balance to what is taken.
    pub fn debit(&mut self, customer_id: Uuid, amount_cents: i64) {
        // A mistake in `load` must not lose money silently.
        let account = self.accounts.get_mut(&customer_id);
        let account =
            account.unwrap_or_else(|| panic!("{customer_id}'s account is not among the rows"));
        account.balance_cents -= amount_cents;
        account.taken_cents += amount_cents;
    }

    /// Moves money back to the balance.
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

    async fn load(loader: &mut Loader<'_>, mut keys: Keys) -> sqlx::Result<Ledger> {
        let payments = loader.lock::<Payment>(keys.orders).await?;
        // A cancellation names no customer; the payment does.
        keys.customers.extend(payments.iter().filter_map(|payment| payment.customer_id));
        let accounts = loader.lock(keys.customers).await?;
        Ok(Ledger { accounts, payments, deposits: Vec::new() })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        writes.save(&self.accounts).save(&self.payments).insert_all(&self.deposits);
    }
}
