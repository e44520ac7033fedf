//! Orders of long ago, ten million unless fewer are asked for, in the order service's own tables.
//!
//! They are made by SQL on the server, once. The cluster that holds them is kept beside the stacks;
//! a stack that wants them is lent it, and gives it back. The old rows lie in tables of the same
//! definition beside the service's own; the two change places within a transaction, while no
//! order is placed, so the same processes are measured with old orders and without, by turns.
//! Only the decider's database is filled: what payment and stock keep of an order is found by its
//! primary key alone, in tables that are narrower.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use e2e::Ports;
use e2e::Stack;
use e2e::launcher::artifacts::{self, Artifacts};
use e2e::launcher::directories;
use e2e::new_service;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// With a checkpoint after each step, or the log of all would lie beside the tables.
const BATCH_ORDERS: i64 = 500_000;
/// With indexes and history; a gigabyte or two of log comes on top.
const BYTES_PER_ORDER: f64 = 1_000.0;

/// The file that says by which code and which Postgres, lying beside the cluster.
const FINGERPRINT_FILE: &str = "fingerprint";

/// As the service's own migrations make them.
const TABLES: &str = concat!(include_str!("../../../services/order/migrations/2_order.sql"),);

/// One order a second from the beginning of 2020 on, with ids of their time.
const ID_FUNCTIONS: &str = "
    create function aside.at(n bigint) returns timestamptz language sql immutable as
        $$ select '2020-01-01Z'::timestamptz + n * interval '1 s' $$;
    create function aside.id(n bigint, nth int) returns uuid language sql immutable as
        $$ select ('0' || to_hex(1577836800000 + n * 1000 + nth) || '70008000000000000000')::uuid $$;
    create function aside.customer(n bigint) returns uuid language sql immutable as
        $$ select ('01930000-0000-7000-8000-'
                   || lpad(to_hex((hashint8(n) & 2147483647) % 10000), 12, '0'))::uuid $$;";

/// Younger orders have larger ids.
const FIRST_NEW_ID: &str = "'0176bb3e-7000-0000-0000-000000000000'";

/// Confirmed, and of two lines, as are those that are measured by default. The indexes are there
/// meanwhile, so that they are as full as indexes are that grew.
const INSERT_ORDERS: &str = r#"
    insert into aside.orders
        (order_id, customer_id, status, payment, stock, total_cents, currency, lines, created_at,
         ended_at, created_event_id, ended_event_id, last_position)
    select aside.id(n, 0), aside.customer(n), 'confirmed', 'verified', 'reserved', 3000, 'EUR',
           ('[{"sku": "bench-' || lpad((n % 10000)::text, 6, '0')
               || '", "quantity": 2, "unit_price_cents": 1000}, {"sku": "bench-'
               || lpad((n % 9999 + 1)::text, 6, '0')
               || '", "quantity": 1, "unit_price_cents": 1000}]')::jsonb,
           aside.at(n), aside.at(n) + interval '20 ms', aside.id(n, 1), aside.id(n, 2), 2
    from generate_series($1::bigint, $2::bigint) as n"#;

/// How an order began and how it ended. The service writes four lines, and more into each; what
/// counts here is how many there are in the index.
const INSERT_HISTORY: &str = "
    insert into aside.history
        (order_id, event_id, position, event, detail, occurred_at, recorded_at)
    select aside.id(n, 0), aside.id(n, nth), nth, event, '{}', aside.at(n), aside.at(n)
    from generate_series($1::bigint, $2::bigint) as n,
         (values (1, 'orders.created'), (2, 'orders.confirmed')) as line (nth, event)";

/// Makes the orders, unless those are still there that this very code and this Postgres made.
pub async fn create(directory: &Path, count: i64) -> Result<()> {
    let versions: Vec<_> = artifacts::versions().collect();
    let postgres = Artifacts::fetch_missing(&|_| {}).await?.postgres_bin.join("postgres");
    let postgres = Command::new(postgres).arg("--version").output()?.stdout;
    let postgres = String::from_utf8_lossy(&postgres);
    let messaging =
        new_service::messaging_migrations(&directories::checkout()?.join("services/order"))?;
    let messaging: String = messaging.into_iter().map(|(_, text)| text).collect();
    let fingerprint = format!(
        "{versions:?} {postgres} {messaging} {TABLES} {ID_FUNCTIONS} {INSERT_ORDERS} {INSERT_HISTORY} {count}"
    );
    let cached = preload_directory()?;
    if fs::read_to_string(cached.join(FINGERPRINT_FILE)).is_ok_and(|text| text == fingerprint) {
        return Ok(());
    }
    let began = Instant::now();
    let gigabytes = count as f64 * BYTES_PER_ORDER / 1e9;
    eprintln!("{count} old orders, once: {gigabytes:.0} GB in {} …", cached.display());
    if cached.exists() {
        fs::remove_dir_all(&cached)?;
    }
    let stack = Stack::new(directory, Ports::free()?)?.quiet();
    stack.up().await?;
    fill(&stack.database_url("order")?, count).await?;
    stack.down().await?;
    fs::write(cluster_directory(&stack).join(FINGERPRINT_FILE), fingerprint)?;
    detach(&stack)?;
    eprintln!("made in {:.0} s", began.elapsed().as_secs_f64());
    stack.clean().await
}

async fn fill(url: &str, count: i64) -> Result<()> {
    let (mut db, mut other) =
        (PgConnection::connect(url).await?, PgConnection::connect(url).await?);
    // As the role that owns the service's tables, so that they are owned and granted alike.
    db.execute("set role order_migrator; create schema aside; create schema hand").await?;
    db.execute(ID_FUNCTIONS).await?;
    db.execute(AssertSqlSafe(format!("set search_path = aside; {TABLES}; drop table items")))
        .await?;
    db.execute(r#"grant select, insert, update, delete on all tables in schema aside to "order""#)
        .await?;
    db.execute("reset role; reset search_path").await?;
    for first in (1..=count).step_by(usize::try_from(BATCH_ORDERS)?) {
        let last = count.min(first + BATCH_ORDERS - 1);
        let orders = sqlx::query(INSERT_ORDERS).bind(first).bind(last).execute(&mut db);
        let history = sqlx::query(INSERT_HISTORY).bind(first).bind(last).execute(&mut other);
        tokio::try_join!(orders, history)?;
        db.execute("checkpoint").await?;
        eprintln!("  {last}");
    }
    let orders = db.execute("vacuum (analyze) aside.orders");
    tokio::try_join!(orders, other.execute("vacuum (analyze) aside.history"))?;
    db.execute("checkpoint").await?;
    tokio::try_join!(db.close(), other.close())?;
    Ok(())
}

/// Gives a stack that does not run the cluster with the old orders, all else in it forgotten.
pub async fn attach(stack: &Stack) -> Result<()> {
    fs::rename(preload_directory()?, cluster_directory(stack))?;
    stack.up_infrastructure().await?;
    let mut db = PgConnection::connect(&stack.database_url("order")?).await?;
    select_tables(&mut db, false).await?;
    db.execute(
        "truncate orders, history, items, inbox, outbox, idempotency_keys, dead_letters, write_offs",
    )
    .await?;
    for table in ["aside.orders", "aside.history"] {
        db.execute(AssertSqlSafe(format!("delete from {table} where order_id >= {FIRST_NEW_ID}")))
            .await?;
        db.execute(AssertSqlSafe(format!("vacuum (analyze) {table}"))).await?;
    }
    db.close().await?;
    Ok(())
}

/// Lets the service work in the tables with the old orders, or in those without.
pub async fn select_tables(db: &mut PgConnection, old: bool) -> Result<()> {
    let there =
        format!("select exists (select from public.orders where order_id < {FIRST_NEW_ID})");
    let there: bool = sqlx::query_scalar(AssertSqlSafe(there)).fetch_one(&mut *db).await?;
    if there == old {
        return Ok(());
    }
    // Prepared statements are planned again, by name.
    db.execute(
        "alter table public.orders set schema hand; alter table public.history set schema hand;
         alter table aside.orders set schema public; alter table aside.history set schema public;
         alter table hand.orders set schema aside; alter table hand.history set schema aside;",
    )
    .await?;
    Ok(())
}

/// What a report says of them; reads them all, so that they are in memory as far as they fit.
pub async fn describe(db: &mut PgConnection) -> Result<String> {
    select_tables(db, true).await?;
    let (count, cents, bytes): (i64, i64, i64) = sqlx::query_as(
        "select count(*), sum(total_cents)::bigint,
                pg_total_relation_size('orders') + pg_total_relation_size('history') from orders",
    )
    .fetch_one(&mut *db)
    .await?;
    let lines: i64 = sqlx::query_scalar("select count(*) from history").fetch_one(&mut *db).await?;
    Ok(format!(
        "{count} confirmed orders over {} EUR with {lines} lines of history, {:.1} GB with their \
         indexes; inserted in the order of their ids from `generate_series` with all indexes in \
         place, vacuumed and analyzed, kept for later runs; the order service's tables alone. With \
         them and without: the tables change places, and nothing is started anew",
        cents / 100,
        bytes as f64 / 1e9,
    ))
}

/// Takes the cluster back from a stack, if it was lent it. One that was killed recovers when it is
/// started again.
pub fn detach(stack: &Stack) -> Result<()> {
    stack.kill_all()?;
    if cluster_directory(stack).join(FINGERPRINT_FILE).exists() {
        fs::rename(cluster_directory(stack), preload_directory()?)?;
    }
    Ok(())
}

fn preload_directory() -> Result<PathBuf> {
    Ok(directories::state_directory()?.join("old-orders"))
}

/// Of the order service's cluster.
fn cluster_directory(stack: &Stack) -> PathBuf {
    stack.directory().join("order-db")
}
