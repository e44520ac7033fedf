//! The reporting database, compared with the orders: each confirmed order has one row, and no customer is in it.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use launcher::{Stack, eventually};
use sqlx::types::chrono::{DateTime, Utc};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::admin::reporting::{BESIDE, NAME};
use crate::client::http_client::Client;

/// What a row says of an order: its sum and the time of its confirmation.
pub type ConfirmedOrders = BTreeMap<Uuid, (i64, String, DateTime<Utc>)>;

type OrderRow = (Uuid, i64, String, DateTime<Utc>);

/// The event of the confirmation has the time of the history.
const CONFIRMED: &str = "
    select o.order_id, o.total_cents, o.currency, h.occurred_at
    from orders o join history h using (order_id)
    where o.status = 'confirmed' and h.event = 'orders.confirmed'";

const REPORTED: &str =
    "select order_id, total_cents, currency, confirmed_at from reporting.confirmed_orders";

/// Every text in the database, with the name of its column.
const TEXTS: &str = "
    select table_name || '.' || column_name, query_to_xml(
        format('select distinct %I from reporting.%I', column_name, table_name), true, false, '')::text
    from information_schema.columns where table_schema = 'reporting'";

/// What the role of the connectors may do in the cluster: each privilege, with what it is about.
const RIGHTS: &str = "
    select privilege || ' ' || relname from pg_class, unnest(array['select', 'insert', 'update', 'delete', 'truncate'])
        as privilege
    where relkind = 'r' and relnamespace not in ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
        and has_table_privilege('reporting', oid, privilege)
    union all
    select 'create in ' || nspname from pg_namespace where has_schema_privilege('reporting', oid, 'create')
    union all
    select 'connect to ' || datname from pg_database
    where datallowconn and has_database_privilege('reporting', oid, 'connect')
    order by 1";

const TABLES: [&str; 3] = ["confirmed_orders", "item_sales", "order_outcomes"];

/// Waits until the rows are those of the confirmed orders, and returns them.
///
/// # Errors
/// If they are not after this time.
pub async fn wait_until_equal(
    client: &Client,
    stack: &Stack,
    within: Duration,
) -> Result<ConfirmedOrders> {
    let orders = &client.addresses.databases[BESIDE];
    let reporting = stack.further_database(BESIDE, NAME).await?.owner_url;
    eventually("the rows to be those of the orders", within, async || {
        let (expected, rows) = (read(orders, CONFIRMED).await?, read(&reporting, REPORTED).await?);
        let absent = expected.iter().filter(|(id, order)| rows.get(id) != Some(order)).count();
        ensure!(
            absent == 0 && rows.len() == expected.len(),
            "of {} orders, {absent} have no such row; there are {} rows",
            expected.len(),
            rows.len()
        );
        Ok(rows)
    })
    .await
}

async fn read(database: &str, query: &'static str) -> Result<ConfirmedOrders> {
    let mut db = PgConnection::connect(database).await?;
    let rows: Vec<OrderRow> = sqlx::query_as(query).fetch_all(&mut db).await?;
    db.close().await?;
    Ok(rows.into_iter().map(|(id, cents, currency, at)| (id, (cents, currency, at))).collect())
}

/// Searches every column of every table for customers.
///
/// # Errors
/// If one is found, or there is nothing to search.
pub async fn assert_no_customer(stack: &Stack, customers: &[Uuid]) -> Result<()> {
    let database = stack.further_database(BESIDE, NAME).await?;
    let mut db = PgConnection::connect(&database.owner_url).await?;
    let texts: Vec<(String, String)> = sqlx::query_as(TEXTS).fetch_all(&mut db).await?;
    db.close().await?;
    let orders = texts.iter().find(|(column, _)| column == "confirmed_orders.order_id");
    let orders = orders.context("the orders have no column")?;
    ensure!(orders.1.contains("<order_id>"), "the search sees no row");
    for (column, text) in &texts {
        let found = customers.iter().find(|customer| text.contains(&customer.to_string()));
        ensure!(found.is_none(), "{column} has the customer {found:?}");
    }
    Ok(())
}

/// Checks that the role of the connectors adds and changes rows of its tables, and does nothing else.
///
/// # Errors
/// If it may do more, or less.
pub async fn assert_rights(stack: &Stack) -> Result<()> {
    let database = stack.further_database(BESIDE, NAME).await?;
    let mut db = PgConnection::connect(&database.owner_url).await?;
    let observed: Vec<String> = sqlx::query_scalar(RIGHTS).fetch_all(&mut db).await?;
    db.close().await?;
    let rights = ["insert", "select", "update"];
    let tables = rights.iter().flat_map(|right| TABLES.map(|table| format!("{right} {table}")));
    let declared: Vec<String> = [format!("connect to {NAME}")].into_iter().chain(tables).collect();
    ensure!(observed == declared, "the role may {observed:?}");
    Ok(())
}
