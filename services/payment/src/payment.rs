//! The aggregate: accounts, and what was taken from them for which order.

use std::collections::BTreeSet;

use chassis::announce::{Announce, Published};
use chassis::rows::{Rows, Table, Touches};
use chassis::writes::Writes;
use chrono::{DateTime, Utc};
use events::orders::{OrderCancelled, OrderCreated};
use events::payments::{DeclineReason, PaymentDeclined, PaymentRefunded, PaymentVerified};
use serde::Serialize;
use sqlx::PgConnection;
use utoipa::ToSchema;
use uuid::Uuid;

/// A customer's account.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, ToSchema)]
pub struct Account {
    pub customer_id: Uuid,
    pub currency: String,
    pub deposited_cents: i64,
    pub balance_cents: i64,
    pub taken_cents: i64,
}

/// What payment did for an order, and what it said.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow, ToSchema)]
pub struct Payment {
    pub order_id: Uuid,
    pub state: State,
    #[schema(required)]
    pub customer_id: Option<Uuid>,
    pub amount_cents: i64,
    #[schema(required)]
    pub currency: Option<String>,
    #[schema(required)]
    pub reason: Option<String>,
    #[serde(skip)]
    pub answer_event_id: Option<Uuid>,
    #[serde(skip)]
    pub undo_event_id: Option<Uuid>,
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
        let reason = self.reason.as_deref().map_or(DeclineReason::Unknown, of_word);
        PaymentDeclined { order_id: self.order_id, reason, occurred_at: self.created_at }
    }

    /// Of nothing where nothing had been taken.
    pub fn refunded(&self) -> PaymentRefunded {
        let taken = self.answer_event_id.map(|_| self.amount_cents);
        PaymentRefunded {
            order_id: self.order_id,
            amount_cents: taken,
            currency: self.currency.clone(),
            occurred_at: self.updated_at,
        }
    }
}

/// The word that a row keeps for why a payment was declined.
pub fn in_words(reason: DeclineReason) -> &'static str {
    match reason {
        DeclineReason::InsufficientFunds => "insufficient_funds",
        DeclineReason::NoAccount => "no_account",
        DeclineReason::CurrencyMismatch => "currency_mismatch",
        DeclineReason::Unknown => "unknown",
    }
}

fn of_word(word: &str) -> DeclineReason {
    let reasons = [
        DeclineReason::InsufficientFunds,
        DeclineReason::NoAccount,
        DeclineReason::CurrencyMismatch,
    ];
    reasons.into_iter().find(|reason| in_words(*reason) == word).unwrap_or(DeclineReason::Unknown)
}

impl Announce for Payment {
    type Key = Uuid;
    const TABLE: (&'static str, &'static str) = ("payments", "order_id");

    fn key(&self) -> Uuid {
        self.order_id
    }

    fn published(&self) -> Vec<Published> {
        let answer = self.answer_event_id.map(|event_id| match self.state {
            State::Declined => Published::new(event_id, self.created_at, &self.declined()),
            _ => Published::new(event_id, self.created_at, &self.verified()),
        });
        let undo = self
            .undo_event_id
            .map(|event_id| Published::new(event_id, self.updated_at, &self.refunded()));
        answer.into_iter().chain(undo).collect()
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

/// The rows of one batch.
#[derive(Default)]
pub struct Ledger {
    accounts: Table<Uuid, Account>,
    payments: Table<Uuid, Payment>,
    deposits: Vec<(Deposit, DateTime<Utc>)>,
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
        self.payments.put(payment.order_id, payment);
    }

    /// Moves money from a balance to what is taken; back where negative.
    pub fn take(&mut self, customer_id: Uuid, amount_cents: i64) {
        // One that `load` forgot must not be moved in silence.
        let account = self.accounts.change(&customer_id);
        let account =
            account.unwrap_or_else(|| panic!("{customer_id}'s account is not among the rows"));
        account.balance_cents -= amount_cents;
        account.taken_cents += amount_cents;
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
        self.accounts.put(deposit.customer_id, account);
        self.deposits.push((deposit.clone(), now));
    }
}

impl Touches<OrderCreated> for Ledger {
    fn touch(order: &OrderCreated, keys: &mut Keys) {
        keys.orders.insert(order.order_id);
        keys.customers.insert(order.customer_id);
    }
}

impl Touches<OrderCancelled> for Ledger {
    fn touch(order: &OrderCancelled, keys: &mut Keys) {
        keys.orders.insert(order.order_id);
    }
}

impl Touches<Deposit> for Ledger {
    fn touch(deposit: &Deposit, keys: &mut Keys) {
        keys.customers.insert(deposit.customer_id);
    }
}

impl Rows for Ledger {
    type Keys = Keys;

    async fn load(tx: &mut PgConnection, mut keys: Keys) -> sqlx::Result<Ledger> {
        let (mut payments, mut accounts) = (Vec::<Payment>::new(), Vec::new());
        if !keys.orders.is_empty() {
            payments = sqlx::query_as(
                "select order_id, state, customer_id, amount_cents, currency, reason,
                        answer_event_id, undo_event_id, created_at, updated_at
                 from payments where order_id = any($1) order by order_id for update",
            )
            .bind(Vec::from_iter(keys.orders.iter().copied()))
            .fetch_all(&mut *tx)
            .await?;
            // A cancellation names no customer; whose money it was stands in the payment.
            keys.customers.extend(payments.iter().filter_map(|payment| payment.customer_id));
        }
        if !keys.customers.is_empty() {
            accounts = sqlx::query_as(
                "select customer_id, currency, deposited_cents, balance_cents, taken_cents
                 from accounts where customer_id = any($1)
                 order by customer_id for update",
            )
            .bind(Vec::from_iter(keys.customers.iter().copied()))
            .fetch_all(&mut *tx)
            .await?;
        }
        Ok(Ledger {
            payments: Table::read(keys.orders, payments, |payment| payment.order_id),
            accounts: Table::read(keys.customers, accounts, |account: &Account| {
                account.customer_id
            }),
            deposits: Vec::new(),
        })
    }

    fn save(&self, writes: &mut Writes<'_>) {
        update_accounts(writes, self.accounts.updated());
        insert_accounts(writes, self.accounts.inserted());
        update_payments(writes, self.payments.updated());
        insert_payments(writes, self.payments.inserted());
        insert_deposits(writes, &self.deposits);
    }
}

/// Whose account it is and in which currency never changes.
fn update_accounts(writes: &mut Writes<'_>, accounts: Vec<&Account>) {
    if accounts.is_empty() {
        return;
    }
    writes
        .add(
            "update accounts set deposited_cents = a.deposited_cents,
             balance_cents = a.balance_cents, taken_cents = a.taken_cents
         from (select unnest($1::uuid[]) as customer_id, unnest($2::bigint[]) as deposited_cents,
                      unnest($3::bigint[]) as balance_cents,
                      unnest($4::bigint[]) as taken_cents) as a
         where accounts.customer_id = a.customer_id",
        )
        .bind(accounts.iter().map(|a| a.customer_id).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.deposited_cents).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.balance_cents).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.taken_cents).collect::<Vec<_>>());
}

fn insert_accounts(writes: &mut Writes<'_>, accounts: Vec<&Account>) {
    if accounts.is_empty() {
        return;
    }
    writes.add(
        "insert into accounts (customer_id, currency, deposited_cents, balance_cents, taken_cents)
         select unnest($1::uuid[]), unnest($2::text[]), unnest($3::bigint[]), unnest($4::bigint[]),
                unnest($5::bigint[])",
    )
    .bind(accounts.iter().map(|a| a.customer_id).collect::<Vec<_>>())
    .bind(accounts.iter().map(|a| a.currency.as_str()).collect::<Vec<_>>())
    .bind(accounts.iter().map(|a| a.deposited_cents).collect::<Vec<_>>())
    .bind(accounts.iter().map(|a| a.balance_cents).collect::<Vec<_>>())
    .bind(accounts.iter().map(|a| a.taken_cents).collect::<Vec<_>>());
}

/// What was answered stays; it can be undone once.
fn update_payments(writes: &mut Writes<'_>, payments: Vec<&Payment>) {
    if payments.is_empty() {
        return;
    }
    writes
        .add(
            "update payments set state = p.state, undo_event_id = p.undo_event_id,
             updated_at = p.updated_at
         from (select unnest($1::uuid[]) as order_id, unnest($2::text[]) as state,
                      unnest($3::uuid[]) as undo_event_id,
                      unnest($4::timestamptz[]) as updated_at) as p
         where payments.order_id = p.order_id",
        )
        .bind(payments.iter().map(|p| p.order_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.state).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.undo_event_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.updated_at).collect::<Vec<_>>());
}

fn insert_payments(writes: &mut Writes<'_>, payments: Vec<&Payment>) {
    if payments.is_empty() {
        return;
    }
    writes
        .add(
            "insert into payments
             (order_id, state, customer_id, amount_cents, currency, reason,
              answer_event_id, undo_event_id, created_at, updated_at)
         select unnest($1::uuid[]), unnest($2::text[]), unnest($3::uuid[]), unnest($4::bigint[]),
                unnest($5::text[]), unnest($6::text[]), unnest($7::uuid[]), unnest($8::uuid[]),
                unnest($9::timestamptz[]), unnest($10::timestamptz[])",
        )
        .bind(payments.iter().map(|p| p.order_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.state).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.customer_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.amount_cents).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.currency.as_deref()).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.reason.as_deref()).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.answer_event_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.undo_event_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.created_at).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.updated_at).collect::<Vec<_>>());
}

fn insert_deposits(writes: &mut Writes<'_>, deposits: &[(Deposit, DateTime<Utc>)]) {
    if deposits.is_empty() {
        return;
    }
    writes
        .add(
            "insert into deposits (deposit_id, customer_id, amount_cents, created_at)
         select unnest($1::uuid[]), unnest($2::uuid[]), unnest($3::bigint[]),
                unnest($4::timestamptz[])",
        )
        .bind(deposits.iter().map(|(d, _)| d.deposit_id).collect::<Vec<_>>())
        .bind(deposits.iter().map(|(d, _)| d.customer_id).collect::<Vec<_>>())
        .bind(deposits.iter().map(|(d, _)| d.amount_cents).collect::<Vec<_>>())
        .bind(deposits.iter().map(|(_, at)| *at).collect::<Vec<_>>());
}
