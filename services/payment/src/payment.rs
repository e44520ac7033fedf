//! The aggregate: accounts, and what was taken from them for which order.

use std::collections::BTreeSet;

use chassis::rows::{Rows, Table, Touches};
use chrono::{DateTime, Utc};
use events::orders::{OrderCancelled, OrderCreated};
use serde::Serialize;
use sqlx::PgConnection;
use uuid::Uuid;

/// A customer's account.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Account {
    pub customer_id: Uuid,
    pub currency: String,
    pub deposited_cents: i64,
    pub balance_cents: i64,
    pub taken_cents: i64,
}

/// What payment did for an order, and what it said.
#[derive(Clone, Debug, PartialEq, Serialize, sqlx::FromRow)]
pub struct Payment {
    pub order_id: Uuid,
    pub state: State,
    pub customer_id: Option<Uuid>,
    pub amount_cents: i64,
    pub currency: Option<String>,
    pub reason: Option<String>,
    #[serde(skip)]
    pub answer_event_id: Option<Uuid>,
    #[serde(skip)]
    pub undo_event_id: Option<Uuid>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
}

/// Where a payment stands. It only moves down this list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, sqlx::Type)]
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
        if let Some(mut account) = self.account(customer_id).cloned() {
            account.balance_cents -= amount_cents;
            account.taken_cents += amount_cents;
            self.accounts.put(customer_id, account);
        }
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

    async fn load(db: &mut PgConnection, mut keys: Keys) -> sqlx::Result<Ledger> {
        let mut ledger = Ledger::default();
        if !keys.orders.is_empty() {
            let payments: Vec<Payment> = sqlx::query_as(
                "select * from payments where order_id = any($1) order by order_id for update",
            )
            .bind(Vec::from_iter(keys.orders))
            .fetch_all(&mut *db)
            .await?;
            // A cancellation names no customer; whose money it was stands in the payment.
            keys.customers.extend(payments.iter().filter_map(|payment| payment.customer_id));
            ledger.payments = Table::read(payments, |payment| payment.order_id);
        }
        if !keys.customers.is_empty() {
            let accounts: Vec<Account> = sqlx::query_as(
                "select * from accounts where customer_id = any($1)
                 order by customer_id for update",
            )
            .bind(Vec::from_iter(keys.customers))
            .fetch_all(&mut *db)
            .await?;
            ledger.accounts = Table::read(accounts, |account| account.customer_id);
        }
        Ok(ledger)
    }

    async fn save(&mut self, db: &mut PgConnection) -> sqlx::Result<()> {
        save_accounts(db, UPDATE_ACCOUNTS, self.accounts.updated()).await?;
        save_accounts(db, INSERT_ACCOUNTS, self.accounts.inserted()).await?;
        save_payments(db, UPDATE_PAYMENTS, self.payments.updated()).await?;
        save_payments(db, INSERT_PAYMENTS, self.payments.inserted()).await?;
        save_deposits(db, &self.deposits).await
    }
}

const UPDATE_ACCOUNTS: &str = "
    update accounts set currency = a.currency, deposited_cents = a.deposited_cents,
        balance_cents = a.balance_cents, taken_cents = a.taken_cents
    from unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])
        as a (customer_id, currency, deposited_cents, balance_cents, taken_cents)
    where accounts.customer_id = a.customer_id";

const INSERT_ACCOUNTS: &str = "
    insert into accounts (customer_id, currency, deposited_cents, balance_cents, taken_cents)
    select * from unnest($1::uuid[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[])";

async fn save_accounts(
    db: &mut PgConnection,
    statement: &'static str,
    accounts: Vec<&Account>,
) -> sqlx::Result<()> {
    if accounts.is_empty() {
        return Ok(());
    }
    sqlx::query(statement)
        .bind(accounts.iter().map(|a| a.customer_id).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.currency.as_str()).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.deposited_cents).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.balance_cents).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.taken_cents).collect::<Vec<_>>())
        .execute(db)
        .await?;
    Ok(())
}

const UPDATE_PAYMENTS: &str = "
    update payments set state = p.state, customer_id = p.customer_id,
        amount_cents = p.amount_cents, currency = p.currency, reason = p.reason,
        answer_event_id = p.answer_event_id, undo_event_id = p.undo_event_id,
        created_at = p.created_at, updated_at = p.updated_at
    from unnest($1::uuid[], $2::text[], $3::uuid[], $4::bigint[], $5::text[], $6::text[],
                $7::uuid[], $8::uuid[], $9::timestamptz[], $10::timestamptz[])
        as p (order_id, state, customer_id, amount_cents, currency, reason,
              answer_event_id, undo_event_id, created_at, updated_at)
    where payments.order_id = p.order_id";

const INSERT_PAYMENTS: &str = "
    insert into payments
        (order_id, state, customer_id, amount_cents, currency, reason,
         answer_event_id, undo_event_id, created_at, updated_at)
    select * from unnest($1::uuid[], $2::text[], $3::uuid[], $4::bigint[], $5::text[], $6::text[],
                         $7::uuid[], $8::uuid[], $9::timestamptz[], $10::timestamptz[])";

async fn save_payments(
    db: &mut PgConnection,
    statement: &'static str,
    payments: Vec<&Payment>,
) -> sqlx::Result<()> {
    if payments.is_empty() {
        return Ok(());
    }
    sqlx::query(statement)
        .bind(payments.iter().map(|p| p.order_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.state).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.customer_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.amount_cents).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.currency.as_deref()).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.reason.as_deref()).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.answer_event_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.undo_event_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.created_at).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.updated_at).collect::<Vec<_>>())
        .execute(db)
        .await?;
    Ok(())
}

async fn save_deposits(
    db: &mut PgConnection,
    deposits: &[(Deposit, DateTime<Utc>)],
) -> sqlx::Result<()> {
    if deposits.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into deposits (deposit_id, customer_id, amount_cents, created_at)
         select * from unnest($1::uuid[], $2::uuid[], $3::bigint[], $4::timestamptz[])",
    )
    .bind(deposits.iter().map(|(d, _)| d.deposit_id).collect::<Vec<_>>())
    .bind(deposits.iter().map(|(d, _)| d.customer_id).collect::<Vec<_>>())
    .bind(deposits.iter().map(|(d, _)| d.amount_cents).collect::<Vec<_>>())
    .bind(deposits.iter().map(|(_, at)| *at).collect::<Vec<_>>())
    .execute(db)
    .await?;
    Ok(())
}
