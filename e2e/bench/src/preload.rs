//! Preloaded orders, ten million by default, in the order service's own tables.
//!
//! SQL on the server creates them, once. Their cluster is kept beside the stacks; a stack that
//! needs them borrows it and returns it. The preloaded rows are in tables of the same definition
//! beside the service's own. The two are swapped in one transaction, while no order is placed, so
//! the same processes are measured with and without them in turn. Only the order service's database
//! is filled: payment and stock only read an order by its primary key, in smaller tables.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use e2e::stack_description::stack_description;
use launcher::Stack;
use launcher::artifacts::{self, Artifacts};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};

/// A checkpoint follows each step, or the whole log would be kept beside the tables.
const BATCH_ORDERS: i64 = 500_000;
/// The size of one order with indexes and history; one or two gigabytes of log are added.
const BYTES_PER_ORDER: f64 = 1_000.0;

/// The file with the version of the code and of Postgres, beside the cluster.
const FINGERPRINT_FILE: &str = "fingerprint";

/// The directory with the passwords of the cluster's roles, beside the cluster. Each stack makes passwords of its own,
/// so the stack that borrows the cluster takes these.
const PASSWORDS_DIRECTORY: &str = "passwords";

/// As the service's own migrations create them.
const TABLES: &str = include_str!("../../../services/order/migrations/1_order.sql");

/// One order a second since the beginning of 2020, with ids of their time.
const ID_FUNCTIONS: &str = "
    create function aside.at(n bigint) returns timestamptz language sql immutable as
        $$ select '2020-01-01Z'::timestamptz + n * interval '1 s' $$;
    create function aside.id(n bigint, nth int) returns uuid language sql immutable as
        $$ select ('0' || to_hex(1577836800000 + n * 1000 + nth) || '70008000000000000000')::uuid $$;
    create function aside.customer(n bigint) returns uuid language sql immutable as
        $$ select ('01930000-0000-7000-8000-'
                   || lpad(to_hex((hashint8(n) & 2147483647) % 10000), 12, '0'))::uuid $$;";

/// Later orders have larger ids.
const FIRST_NEW_ID: &str = "'0176bb3e-7000-0000-0000-000000000000'";

/// Confirmed orders with two lines, like those of the default workload. The indexes exist while the
/// rows are inserted, so that their pages are as full as those of indexes that grew.
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

/// The first and the last event of an order. The service writes four rows, with more content; only
/// the number of rows in the index matters here.
const INSERT_HISTORY: &str = "
    insert into aside.history
        (order_id, event_id, position, event, detail, occurred_at, recorded_at)
    select aside.id(n, 0), aside.id(n, nth), nth, event, '{}', aside.at(n), aside.at(n)
    from generate_series($1::bigint, $2::bigint) as n,
         (values (1, 'orders.created'), (2, 'orders.confirmed')) as line (nth, event)";

/// What a service finds in a new database. The tables of another stack would hold its ids of schemas, and those of an
/// older version.
const EMPTY_DATABASE: &str = "
    drop publication if exists outbox;
    drop schema if exists chassis, public cascade;
    create schema public authorization pg_database_owner;
    grant usage on schema public to public;";

/// Creates the orders, unless this version of the code and of Postgres has created them already.
pub async fn create(directory: &Path, count: i64) -> Result<()> {
    let versions: Vec<_> = artifacts::versions().collect();
    let postgres = Artifacts::fetch_missing(&|_| {}).await?.postgres_bin.join("postgres");
    let postgres = Command::new(postgres).arg("--version").output()?.stdout;
    let postgres = String::from_utf8_lossy(&postgres);
    let fingerprint = format!(
        "{versions:?} {postgres} {TABLES} {ID_FUNCTIONS} {INSERT_ORDERS} {INSERT_HISTORY} {count}"
    );
    let cached = preload_directory()?;
    let is_current =
        fs::read_to_string(cached.join(FINGERPRINT_FILE)).is_ok_and(|text| text == fingerprint);
    if is_current && cached.join(PASSWORDS_DIRECTORY).exists() {
        return Ok(());
    }
    let began = Instant::now();
    let gigabytes = count as f64 * BYTES_PER_ORDER / 1e9;
    eprintln!("{count} old orders, once: {gigabytes:.0} GB in {} …", cached.display());
    if cached.exists() {
        fs::remove_dir_all(&cached)?;
    }
    let stack = Stack::on_free_ports(&stack_description(), directory)?;
    stack.up().await?;
    fill(&stack.database_url("order")?, count).await?;
    stack.down().await?;
    copy_files(&stack_passwords(&stack), &cluster_directory(&stack).join(PASSWORDS_DIRECTORY))?;
    fs::write(cluster_directory(&stack).join(FINGERPRINT_FILE), fingerprint)?;
    detach(&stack)?;
    eprintln!("made in {:.0} s", began.elapsed().as_secs_f64());
    stack.clean().await
}

async fn fill(url: &str, count: i64) -> Result<()> {
    let (mut db, mut other) =
        (PgConnection::connect(url).await?, PgConnection::connect(url).await?);
    // As the role that owns the service's tables, so that owner and grants are the same.
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

/// Gives a stopped stack the cluster with the preloaded orders, and deletes everything else in it. The service creates
/// its tables when it starts.
pub async fn attach(stack: &Stack) -> Result<()> {
    fs::rename(preload_directory()?, cluster_directory(stack))?;
    copy_files(&cluster_directory(stack).join(PASSWORDS_DIRECTORY), &stack_passwords(stack))?;
    stack.up_infrastructure().await?;
    let mut db = PgConnection::connect(&stack.database_url("order")?).await?;
    select_tables(&mut db, false).await?;
    db.execute(EMPTY_DATABASE).await?;
    for table in ["aside.orders", "aside.history"] {
        db.execute(AssertSqlSafe(format!("delete from {table} where order_id >= {FIRST_NEW_ID}")))
            .await?;
        db.execute(AssertSqlSafe(format!("vacuum (analyze) {table}"))).await?;
    }
    db.close().await?;
    Ok(())
}

/// Switches the service to the tables with the preloaded orders, or to those without.
pub async fn select_tables(db: &mut PgConnection, old: bool) -> Result<()> {
    let there =
        format!("select not exists (select from aside.orders where order_id < {FIRST_NEW_ID})");
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

/// The description for a report. It reads all rows, so that they are in memory as far as they fit.
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
         them and without: the tables are swapped, and no process is restarted",
        cents / 100,
        bytes as f64 / 1e9,
    ))
}

/// Takes the cluster back from a stack, if the stack borrowed it. A killed cluster recovers at its
/// next start.
pub fn detach(stack: &Stack) -> Result<()> {
    stack.kill_all()?;
    if cluster_directory(stack).join(FINGERPRINT_FILE).exists() {
        fs::rename(cluster_directory(stack), preload_directory()?)?;
    }
    Ok(())
}

fn preload_directory() -> Result<PathBuf> {
    Ok(stack_description().state_directory()?.join("old-orders"))
}

/// Where the stack keeps the passwords of the roles in the order service's cluster, a file for each role.
fn stack_passwords(stack: &Stack) -> PathBuf {
    stack.directory().join("secrets/database-users/order")
}

/// Copies the files of a directory, with their permissions, into a directory that only this user may enter.
fn copy_files(from: &Path, into: &Path) -> Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(into)?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        fs::copy(entry.path(), into.join(entry.file_name()))?;
    }
    Ok(())
}

/// The directory of the order service's cluster.
fn cluster_directory(stack: &Stack) -> PathBuf {
    stack.directory().join("order-db")
}
