//! The erasure of a customer on a running stack: the id is in no database, the books balance, and the checker accepts
//! the records that still name the customer, and no other difference.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::admin::erasure;
use e2e::admin::republish::{self, RepublishOptions};
use e2e::checker::erasures::personal_field_names;
use e2e::checker::run;
use e2e::client::http_client::Client;
use e2e::client::order::Order;
use e2e::client::outcome::require_accepted;
use e2e::stack_description::SERVICES;
use e2e::workload::seed::SCARCE_ITEM;
use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::fixture::*;
use crate::personal_data::buy_after_a_dead_letter;

const DEPOSIT_CENTS: i64 = 10_000_000;

/// Where the id of a customer must be before the erasure, so that the search finds what there is.
const PLACES: [&str; 10] = [
    "order public.orders.customer_id",
    "order public.history.detail",
    "order chassis.idempotency_keys.body",
    "payment public.accounts.customer_id",
    "payment public.deposits.customer_id",
    "payment public.payments.customer_id",
    "payment chassis.idempotency_keys.path",
    "payment chassis.idempotency_keys.key",
    "payment chassis.idempotency_keys.location",
    "payment chassis.dead_letters.record",
];

#[tokio::test(flavor = "multi_thread")]
async fn an_erased_customer_is_in_no_table_and_the_checker_accepts_no_other_difference()
-> Result<()> {
    with_exclusive_fixture(async |fixture| {
        let Fixture { stack, client } = fixture;
        let customer = Uuid::now_v7();
        let key = Uuid::now_v7().to_string();
        buy(fixture, customer, &key).await?;
        let open = place_while_stock_is_away(fixture, customer).await?;
        let found = find_in_databases(client, customer).await?;
        let missing: Vec<_> = PLACES.iter().filter(|it| !found.contains(&it.to_string())).collect();
        ensure!(missing.is_empty(), "{missing:?} is not among {found:?}");
        client.wait_until_ended(open, TIMEOUT).await?;

        let erased = erasure::run(stack, customer, None).await?;
        let replaced = erased.iter().filter(|(_, erased)| erased.replaced > 0);
        ensure!(
            replaced.map(|(service, _)| service.as_str()).eq(["order", "payment"]),
            "{erased:?}"
        );
        ensure!(erased.len() == SERVICES.len(), "{erased:?}");
        let found = find_in_databases(client, customer).await?;
        ensure!(found.is_empty(), "the id is in {found:?}");
        check_clients(client, customer, &key).await?;
        check_declarations(client).await?;
        let verdict = fixture.verify().await?;
        ensure!(verdict.tally.erased.count > 0, "no record names the customer");

        republish::run(stack, &RepublishOptions::default()).await?;
        for service in SERVICES {
            wait_until_outbox_empty(client, service).await?;
        }
        fixture.verify().await?;
        check_false_journal(fixture).await?;

        let again = erasure::run(stack, customer, None).await?;
        ensure!(again.iter().all(|(_, erased)| erased.replaced == 0), "{again:?}");
        let declined = place_until(client, customer, "cancelled").await?;
        ensure!(declined.leg("payment") == "declined", "of a new customer: {declined:?}");
        Ok(())
    })
    .await
}

/// Orders that are declined, confirmed, rejected, cancelled and whose event was a dead letter; deposits with keys.
async fn buy(Fixture { stack, client }: &Fixture, customer: Uuid, key: &str) -> Result<()> {
    let end = async |order_id| client.wait_until_ended(order_id, TIMEOUT).await;
    ensure!(place_until(client, customer, "cancelled").await?.leg("payment") == "declined");
    for key in [key.to_string(), format!("of-{customer}")] {
        client.deposit(customer, DEPOSIT_CENTS, &key).await?;
    }
    let placed = require_accepted(async || client.place_order(customer, &basket(), key).await);
    let confirmed: Order = placed.await?.json()?;
    ensure!(end(confirmed.order_id).await?.status == "confirmed");
    let too_many = [line(SCARCE_ITEM.sku, SCARCE_ITEM.delivered_quantity + 1)];
    let rejected = client.place_until_accepted(customer, &too_many).await?;
    ensure!(end(rejected.order_id).await?.leg("stock") == "rejected");
    buy_after_a_dead_letter(stack, client, customer).await
}

/// An order with an open leg refuses the erasure, and nothing is changed.
async fn place_while_stock_is_away(
    Fixture { stack, client }: &Fixture,
    customer: Uuid,
) -> Result<Uuid> {
    stack.stop("stock").await?;
    let open = client.place_until_accepted(customer, &basket()).await?;
    // A row of the outbox would be gone afterwards.
    wait_until_outbox_empty(client, "order").await?;
    let before = find_in_databases(client, customer).await?;
    let refused = erasure::run(stack, customer, None).await.err().context("it was erased")?;
    let refused = format!("{refused:#}");
    ensure!(refused.contains(&format!("order {} has not ended", open.order_id)), "{refused}");
    ensure!(!refused.contains(&customer.to_string()), "{refused}");
    let after = find_in_databases(client, customer).await?;
    ensure!(before.iter().all(|place| after.contains(place)), "{before:?} {after:?}");
    // The customer may go on.
    let cancelled = client.place_until_accepted(customer, &basket()).await?;
    client.cancel_until_accepted(&cancelled).await?;
    stack.start("stock").await?;
    client.wait_until_ended(cancelled.order_id, TIMEOUT).await?;
    Ok(open.order_id)
}

/// No client learns the replacement by the id: orders and account are gone, and a repeated request is refused.
async fn check_clients(client: &Client, customer: Uuid, key: &str) -> Result<()> {
    let orders: Value = client.get("order", &format!("/orders?customer_id={customer}")).await?;
    ensure!(orders["orders"] == serde_json::json!([]), "{orders}");
    let account: Option<Value> = client.find("payment", &format!("/accounts/{customer}")).await?;
    ensure!(account.is_none(), "{account:?}");
    let repeated = client.place_order(customer, &basket(), key).await;
    ensure!(repeated.status() == Some(422), "{repeated:?}");
    Ok(())
}

/// A column whose name is that of a personal field needs the comment.
async fn check_declarations(client: &Client) -> Result<()> {
    for service in SERVICES {
        let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
        let names: Vec<&str> = personal_field_names().into_iter().collect();
        let undeclared: Vec<String> = sqlx::query_scalar(
            "select attrelid::regclass || '.' || attname from pg_attribute
             where attname = any($1) and attrelid in (select oid from pg_class where relkind in ('r', 'p'))
               and coalesce(col_description(attrelid, attnum), '') not like 'personal%'",
        )
        .bind(names)
        .fetch_all(&mut db)
        .await?;
        ensure!(undeclared.is_empty(), "{service}: no comment declares {undeclared:?} as personal");
    }
    Ok(())
}

/// A replacement that one service has not journalled is a difference like any other.
async fn check_false_journal(Fixture { client, .. }: &Fixture) -> Result<()> {
    let mut db = PgConnection::connect(&client.addresses.databases["payment"]).await?;
    sqlx::raw_sql(
        "create schema hidden; create table hidden.erasures as select * from chassis.erasures;
         delete from chassis.erasures",
    )
    .execute(&mut db)
    .await?;
    let options = run::CheckOptions { timeout: Duration::from_secs(60) };
    let checked = run::run(client, &options).await;
    sqlx::raw_sql(
        "insert into chassis.erasures select * from hidden.erasures; drop schema hidden cascade",
    )
    .execute(&mut db)
    .await?;
    let lines = checked?.lines().join("\n");
    ensure!(lines.contains("I8") && lines.contains("differs from the row"), "{lines}");
    Ok(())
}

/// Every column of every table that contains an id, as text or in bytes.
async fn find_in_databases(client: &Client, id: Uuid) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for service in SERVICES {
        let mut db = PgConnection::connect(&client.addresses.databases[service]).await?;
        let columns: Vec<(String, String, bool)> = sqlx::query_as(
            "select quote_ident(nspname) || '.' || quote_ident(relname), quote_ident(attname),
                    atttypid = 'bytea'::regtype
             from pg_attribute join pg_class on pg_class.oid = attrelid
                  join pg_namespace on pg_namespace.oid = relnamespace
             where relkind in ('r', 'p') and attnum > 0 and not attisdropped
               and nspname not in ('pg_catalog', 'information_schema')",
        )
        .fetch_all(&mut db)
        .await?;
        for (table, column, is_bytes) in columns {
            // The hexadecimal digits of bytes contain those of the id, and those of its text.
            let condition = match is_bytes {
                true => format!(
                    "encode({column}, 'hex') like '%' || $2 || '%'
                     or encode({column}, 'hex') like '%' || encode(convert_to($1, 'UTF8'), 'hex') || '%'"
                ),
                false => format!("{column}::text ilike '%' || $1 || '%' or {column}::text ilike '%' || $2 || '%'"),
            };
            let sql = format!("select exists (select from {table} where {condition})");
            let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(id.to_string());
            if query.bind(id.simple().to_string()).fetch_one(&mut db).await? {
                found.push(format!("{service} {table}.{column}"));
            }
        }
    }
    Ok(found)
}

/// The customer goes on ordering. The erasure is refused while an order is open. Each order is accepted, and is either
/// erased in every service or that of a new customer in every service, as the checker shows after the test.
#[tokio::test(flavor = "multi_thread")]
async fn orders_that_are_placed_during_an_erasure_are_accepted_and_consistent() -> Result<()> {
    const ORDERS: usize = 60;
    with_exclusive_fixture(async |Fixture { stack, client }| {
        let customer = Uuid::now_v7();
        client.deposit(customer, DEPOSIT_CENTS, &Uuid::now_v7().to_string()).await?;
        let buy = async || {
            let order = client.place_until_accepted(customer, &basket()).await?;
            client.wait_until_ended(order.order_id, TIMEOUT).await
        };
        // An erasure that comes before the first order would find nothing to replace.
        buy().await?;
        let buying = async {
            for _ in 1..ORDERS {
                buy().await?;
            }
            anyhow::Ok(())
        };
        let erasing = async {
            let mut refused = 0;
            loop {
                match erasure::run(stack, customer, None).await {
                    Ok(erased) => return Ok((refused, erased)),
                    Err(error) if format!("{error:#}").contains("has not ended") => refused += 1,
                    Err(error) => return Err(error),
                }
            }
        };
        let ((), (refused, erased)) = tokio::try_join!(buying, erasing)?;
        println!("{refused} erasures were refused before {erased:?}");
        ensure!(erased[0].1.replaced > 0, "{erased:?}");
        let journal = erased[0].1.replacement_id;
        let orders: Value = client.get("order", &format!("/orders?customer_id={journal}")).await?;
        ensure!(orders["orders"].as_array().is_some_and(|it| !it.is_empty()), "{orders}");
        Ok(())
    })
    .await
}
