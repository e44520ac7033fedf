//! The yardstick: `tx4`, what a service does that writes an order and its event as one would by
//! hand. `BEGIN`, two inserts, `COMMIT`, by pgbench with prepared statements, on the very cluster
//! that the order service uses, with the same settings.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::Stack;
use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::process::Command;

use crate::costs::Costs;

const DATABASE: &str = "yardstick";
const CLIENTS: u32 = 16;

/// An order with two lines and the event of it, in sizes like ours; keys that grow, and no index
/// besides, so that nothing about it is slower than it need be.
const TABLES: &str = "
    drop table if exists orders, outbox;
    create table orders (
        order_id bigint generated always as identity primary key, customer_id uuid not null,
        status smallint not null, total_cents bigint not null, lines jsonb not null);
    create table outbox (
        position bigint generated always as identity primary key, order_id bigint not null,
        topic text not null, body bytea not null);";

const TX4: &str = r#"
\set cents random(1, 1000000)
\set nth random(1, 9999)
begin;
insert into orders (customer_id, status, total_cents, lines) values ('01930000-0000-7000-8000-000000000000', 0, :cents, '[{"sku": "bench-000001", "quantity": 2, "unit_price_cents": 1000}, {"sku": "bench-000002", "quantity": 1, "unit_price_cents": 1000}]');
insert into outbox (order_id, topic, body) values (:nth, 'orders.created', decode(repeat('5a', 155), 'hex'));
commit;
"#;

/// What the yardstick showed.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Yardstick {
    pub per_second: f64,
    /// Of a transaction, at the median; known where it is alone.
    pub p50_ms: Option<f64>,
    /// Of all of Postgres.
    pub postgres_micros: f64,
}

pub struct Bench {
    program: PathBuf,
    script: PathBuf,
    url: String,
}

impl Bench {
    pub async fn prepare(stack: &Stack) -> Result<Bench> {
        let script = stack.directory().join("tx4.sql");
        std::fs::write(&script, TX4)?;
        let mut db = PgConnection::connect(&stack.cluster_url("order")?).await?;
        let there: bool =
            sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
                .bind(DATABASE)
                .fetch_one(&mut db)
                .await?;
        if !there {
            db.execute(AssertSqlSafe(format!("create database {DATABASE}"))).await?;
        }
        db.close().await?;
        let url = stack.cluster_url("order")?;
        let url =
            format!("{}/{DATABASE}", url.rsplit_once('/').context("a URL names a database")?.0);
        Ok(Bench { program: pgbench()?, script, url })
    }

    /// Runs it; alone it is one client, else sixteen.
    pub async fn run(&self, stack: &Stack, lasting: Duration, alone: bool) -> Result<Yardstick> {
        let mut db = PgConnection::connect(&self.url).await?;
        db.execute(TABLES).await?;
        db.close().await?;
        let before = Costs::now(stack).await?;
        let clients = if alone { 1 } else { CLIENTS };
        let log = self.script.with_extension("log");
        std::fs::create_dir_all(&log)?;
        let ran = Command::new(&self.program)
            .current_dir(&log)
            .args(["--no-vacuum", "--protocol=prepared"])
            .args([format!("--client={clients}"), format!("--jobs={}", clients.min(2))])
            .arg(format!("--time={}", lasting.as_secs().max(1)))
            .arg(format!("--file={}", self.script.display()))
            .args(alone.then_some("--log"))
            .arg(&self.url)
            .output()
            .await
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        let said = String::from_utf8_lossy(&ran.stdout);
        ensure!(ran.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&ran.stderr));
        let spent = Costs::now(stack).await?.since(&before);
        let done = number(&said, "number of transactions actually processed: ")?;
        Ok(Yardstick {
            per_second: number(&said, "tps = ")?,
            p50_ms: if alone { Some(median_ms(&log)?) } else { None },
            postgres_micros: spent.postgres_micros() / done.max(1.0),
        })
    }
}

fn number(said: &str, label: &str) -> Result<f64> {
    let line = said.lines().find_map(|line| line.strip_prefix(label));
    let number = line.and_then(|line| line.split([' ', '/']).next()?.parse().ok());
    number.with_context(|| format!("pgbench did not say `{label}`: {said}"))
}

/// From the log that pgbench writes: of each transaction a line, its microseconds the third word.
fn median_ms(log: &Path) -> Result<f64> {
    let mut micros = Vec::new();
    for entry in std::fs::read_dir(log)? {
        let lines = std::fs::read_to_string(entry?.path())?;
        let of = |line: &str| line.split(' ').nth(2)?.parse::<f64>().ok();
        micros.extend(lines.lines().filter_map(of));
    }
    std::fs::remove_dir_all(log)?;
    ensure!(!micros.is_empty(), "pgbench logged no transaction");
    micros.sort_by(f64::total_cmp);
    Ok(micros[micros.len() / 2] / 1_000.0)
}

/// On the path, or where Debian puts it.
fn pgbench() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    places.extend(versions.map(|version| version.path().join("bin")));
    let found = places.iter().map(|place| place.join("pgbench")).find(|file| Path::is_file(file));
    found.context(
        "pgbench, the yardstick, is needed: on Debian and Ubuntu it comes with `postgresql`",
    )
}
