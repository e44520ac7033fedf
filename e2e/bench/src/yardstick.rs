//! The yardstick: `tx4`, the plain transaction of a service that writes an order and its event by
//! hand. `BEGIN`, two inserts, `COMMIT`, by pgbench with prepared statements, on the order
//! service's own cluster with the same settings. Without pgbench, as on a machine with only the
//! fetched PostgreSQL, this program does the same.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::client::addresses::Addresses;
use launcher::Stack;
use serde::Serialize;
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection};
use tokio::process::Command;
use url::Url;

use crate::cpu_costs::Costs;

const DATABASE: &str = "yardstick";
const CLIENTS: u32 = 16;
const STATISTICS_DELAY: Duration = Duration::from_millis(300);

/// An order with two lines and its event, in sizes like ours. Keys grow, and there is no further
/// index, so that nothing slows it down.
const TABLES: &str = "
    drop table if exists orders, outbox;
    create table orders (
        order_id bigint generated always as identity primary key, customer_id uuid not null,
        status smallint not null, total_cents bigint not null, lines jsonb not null);
    create table outbox (
        position bigint generated always as identity primary key, order_id bigint not null,
        topic text not null, body bytea not null);";

const INSERT_ORDER: &str = r#"insert into orders (customer_id, status, total_cents, lines) values ('01930000-0000-7000-8000-000000000000', 0, :cents, '[{"sku": "bench-000001", "quantity": 2, "unit_price_cents": 1000}, {"sku": "bench-000002", "quantity": 1, "unit_price_cents": 1000}]')"#;
const INSERT_EVENT: &str = "insert into outbox (order_id, topic, body) values (:nth, 'orders.created', decode(repeat('5a', 155), 'hex'))";

/// The result of the yardstick.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Yardstick {
    pub per_second: f64,
    /// The median of a transaction; measured only with one client.
    pub p50_ms: f64,
    /// The processor time of all of Postgres.
    pub postgres_micros: f64,
}

pub struct YardstickRunner {
    /// pgbench with its version, if it is installed.
    program: Option<(PathBuf, String)>,
    script: PathBuf,
    url: String,
}

impl YardstickRunner {
    pub async fn prepare(stack: &Stack, pgbench: bool) -> Result<YardstickRunner> {
        let script = stack.directory().join("tx4.sql");
        std::fs::write(
            &script,
            format!(
                "\\set cents random(1, 1000000)\n\\set nth random(1, 9999)\nbegin;\n{INSERT_ORDER};\n{INSERT_EVENT};\ncommit;\n"
            ),
        )?;
        let mut db = PgConnection::connect(&stack.maintenance_database_url("order")?).await?;
        let there: bool =
            sqlx::query_scalar("select exists (select from pg_database where datname = $1)")
                .bind(DATABASE)
                .fetch_one(&mut db)
                .await?;
        if !there {
            db.execute(AssertSqlSafe(format!("create database {DATABASE}"))).await?;
        }
        db.close().await?;
        let mut url = Url::parse(&stack.maintenance_database_url("order")?)?;
        url.set_path(DATABASE);
        let url = url.to_string();
        let program = if pgbench { self::find_pgbench() } else { None };
        Ok(YardstickRunner { program, script, url })
    }

    pub fn describe(&self) -> String {
        let by = match &self.program {
            Some((_, version)) => version,
            None => {
                "this program itself, since pgbench is not installed (sqlx, prepared statements)"
            }
        };
        format!(
            "tx4: begin, insert an order of two lines, insert its event, commit; by {CLIENTS} \
             clients of {by}, on the order service's cluster"
        )
    }

    /// Runs the yardstick, with one client or with sixteen.
    pub async fn run(
        &self,
        stack: &Stack,
        addresses: &Addresses,
        lasting: Duration,
        alone: bool,
    ) -> Result<Yardstick> {
        let mut db = PgConnection::connect(&self.url).await?;
        db.execute(TABLES).await?;
        db.close().await?;
        let clients = if alone { 1 } else { CLIENTS };
        let before = Costs::measure(stack, addresses).await?;
        let (per_second, done, p50_ms) = match &self.program {
            Some((program, _)) => self.run_pgbench(program, clients, lasting).await?,
            None => self.run_in_process(clients, lasting).await?,
        };
        // Postgres reports the times of its backends after they have exited.
        tokio::time::sleep(STATISTICS_DELAY).await;
        let spent = Costs::measure(stack, addresses).await?.since(&before);
        let postgres_micros = spent.postgres_micros() / done.max(1.0);
        Ok(Yardstick { per_second, p50_ms, postgres_micros })
    }

    /// The rate, the number of transactions, and their median.
    async fn run_pgbench(
        &self,
        program: &Path,
        clients: u32,
        lasting: Duration,
    ) -> Result<(f64, f64, f64)> {
        let log = self.script.with_extension("log");
        std::fs::create_dir_all(&log)?;
        let ran = Command::new(program)
            .current_dir(&log)
            .args(["--no-vacuum", "--protocol=prepared"])
            .args([format!("--client={clients}"), format!("--jobs={}", clients.min(2))])
            .arg(format!("--time={}", lasting.as_secs().max(1)))
            .arg(format!("--file={}", self.script.display()))
            .args((clients == 1).then_some("--log"))
            .arg(&self.url)
            .output()
            .await
            .with_context(|| format!("cannot run {}", program.display()))?;
        let output = String::from_utf8_lossy(&ran.stdout);
        ensure!(ran.status.success(), "pgbench failed: {}", String::from_utf8_lossy(&ran.stderr));
        let done = parse_number(&output, "number of transactions actually processed: ")?;
        let p50_ms = if clients == 1 { median_ms(read_log(&log)?)? } else { f64::NAN };
        Ok((parse_number(&output, "tps = ")?, done, p50_ms))
    }

    async fn run_in_process(&self, clients: u32, lasting: Duration) -> Result<(f64, f64, f64)> {
        let mut connections = Vec::new();
        for _ in 0..clients {
            connections.push(PgConnection::connect(&self.url).await?);
        }
        let began = Instant::now();
        let running =
            connections.into_iter().map(|db| tokio::spawn(run_client(db, began + lasting)));
        let micros = futures::future::try_join_all(running).await?;
        let seconds = began.elapsed().as_secs_f64();
        let micros = micros.into_iter().collect::<Result<Vec<_>>>()?.concat();
        let done = micros.len() as f64;
        Ok((done / seconds, done, median_ms(micros)?))
    }
}

/// One client without pgbench; returns the microseconds of each transaction.
async fn run_client(mut db: PgConnection, until: Instant) -> Result<Vec<f64>> {
    let (order, event) = (INSERT_ORDER.replace(":cents", "$1"), INSERT_EVENT.replace(":nth", "$1"));
    let mut micros = Vec::new();
    while Instant::now() < until {
        let began = Instant::now();
        let mut tx = db.begin().await?;
        let (cents, nth) =
            (rand::random_range(1..=1_000_000_i64), rand::random_range(1..10_000_i64));
        sqlx::query(AssertSqlSafe(order.as_str())).bind(cents).execute(&mut *tx).await?;
        sqlx::query(AssertSqlSafe(event.as_str())).bind(nth).execute(&mut *tx).await?;
        tx.commit().await?;
        micros.push(began.elapsed().as_micros() as f64);
    }
    Ok(micros)
}

fn parse_number(output: &str, label: &str) -> Result<f64> {
    let line = output.lines().find_map(|line| line.strip_prefix(label));
    let number = line.and_then(|line| line.split([' ', '/']).next()?.parse().ok());
    number.with_context(|| format!("pgbench did not print `{label}`: {output}"))
}

/// Reads the log of pgbench: a line for each transaction, with its microseconds as the third word.
fn read_log(log: &Path) -> Result<Vec<f64>> {
    let mut micros = Vec::new();
    for entry in std::fs::read_dir(log)? {
        let lines = std::fs::read_to_string(entry?.path())?;
        let of = |line: &str| line.split(' ').nth(2)?.parse::<f64>().ok();
        micros.extend(lines.lines().filter_map(of));
    }
    std::fs::remove_dir_all(log)?;
    Ok(micros)
}

fn median_ms(mut micros: Vec<f64>) -> Result<f64> {
    ensure!(!micros.is_empty(), "no transaction was committed");
    micros.sort_by(f64::total_cmp);
    Ok(micros[micros.len() / 2] / 1_000.0)
}

/// On the path, or in Debian's directory; and its version.
fn find_pgbench() -> Option<(PathBuf, String)> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    places.extend(versions.map(|version| version.path().join("bin")));
    let program = places.iter().map(|place| place.join("pgbench")).find(|file| file.is_file())?;
    let version = std::process::Command::new(&program).arg("--version").output().ok()?;
    Some((program, String::from_utf8_lossy(&version.stdout).trim().to_string()))
}
