//! How the rows of accounts, payments and deposits are loaded and saved: the SQL of the aggregate.
//!
//! One statement a table, with arrays for columns, whatever the size of the batch. The second half of
//! `payment.rs`, which declares it by its path: the model checker and the fuzzer compile that file in as well.

use super::*;

impl UnitOfWork for Ledger {
    type Keys = Keys;

    async fn load(tx: &mut PgConnection, mut keys: Keys) -> sqlx::Result<Ledger> {
        let (mut payments, mut accounts) = (Vec::<Payment>::new(), Vec::new());
        if !keys.orders.is_empty() {
            payments = sqlx::query_as(
                "select order_id, state, customer_id, amount_cents, currency, reason,
                        response_event_id, compensation_event_id, created_at, updated_at
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
            payments: Table::from_rows(keys.orders, payments, |payment| payment.order_id),
            accounts: Table::from_rows(keys.customers, accounts, |account: &Account| {
                account.customer_id
            }),
            deposits: Vec::new(),
        })
    }

    fn save(&self, writes: &mut WriteBatch<'_>) {
        update_accounts(writes, self.accounts.dirty_rows());
        insert_accounts(writes, self.accounts.new_rows());
        update_payments(writes, self.payments.dirty_rows());
        insert_payments(writes, self.payments.new_rows());
        insert_deposits(writes, &self.deposits);
    }
}

/// Whose account it is and in which currency never changes.
fn update_accounts(writes: &mut WriteBatch<'_>, accounts: Vec<&Account>) {
    if accounts.is_empty() {
        return;
    }
    writes
        .statement(
            "update accounts set deposited_cents = changed.deposited_cents,
             balance_cents = changed.balance_cents, taken_cents = changed.taken_cents
         from (select unnest($1::uuid[]) as customer_id, unnest($2::bigint[]) as deposited_cents,
                      unnest($3::bigint[]) as balance_cents,
                      unnest($4::bigint[]) as taken_cents) as changed
         where accounts.customer_id = changed.customer_id",
        )
        .bind(accounts.iter().map(|a| a.customer_id).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.deposited_cents).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.balance_cents).collect::<Vec<_>>())
        .bind(accounts.iter().map(|a| a.taken_cents).collect::<Vec<_>>());
}

fn insert_accounts(writes: &mut WriteBatch<'_>, accounts: Vec<&Account>) {
    if accounts.is_empty() {
        return;
    }
    writes.statement(
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
fn update_payments(writes: &mut WriteBatch<'_>, payments: Vec<&Payment>) {
    if payments.is_empty() {
        return;
    }
    writes
        .statement(
            "update payments set state = changed.state, compensation_event_id = changed.compensation_event_id,
             updated_at = changed.updated_at
         from (select unnest($1::uuid[]) as order_id, unnest($2::text[]) as state,
                      unnest($3::uuid[]) as compensation_event_id,
                      unnest($4::timestamptz[]) as updated_at) as changed
         where payments.order_id = changed.order_id",
        )
        .bind(payments.iter().map(|p| p.order_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.state).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.compensation_event_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.updated_at).collect::<Vec<_>>());
}

fn insert_payments(writes: &mut WriteBatch<'_>, payments: Vec<&Payment>) {
    if payments.is_empty() {
        return;
    }
    writes
        .statement(
            "insert into payments
             (order_id, state, customer_id, amount_cents, currency, reason,
              response_event_id, compensation_event_id, created_at, updated_at)
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
        .bind(payments.iter().map(|p| p.response_event_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.compensation_event_id).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.created_at).collect::<Vec<_>>())
        .bind(payments.iter().map(|p| p.updated_at).collect::<Vec<_>>());
}

fn insert_deposits(writes: &mut WriteBatch<'_>, deposits: &[(Deposit, DateTime<Utc>)]) {
    if deposits.is_empty() {
        return;
    }
    writes
        .statement(
            "insert into deposits (deposit_id, customer_id, amount_cents, created_at)
         select unnest($1::uuid[]), unnest($2::uuid[]), unnest($3::bigint[]),
                unnest($4::timestamptz[])",
        )
        .bind(deposits.iter().map(|(d, _)| d.deposit_id).collect::<Vec<_>>())
        .bind(deposits.iter().map(|(d, _)| d.customer_id).collect::<Vec<_>>())
        .bind(deposits.iter().map(|(d, _)| d.amount_cents).collect::<Vec<_>>())
        .bind(deposits.iter().map(|(_, at)| *at).collect::<Vec<_>>());
}
