//! The long outage: stock is stopped for minutes while orders go on, comes back, and has to catch
//! up while they still go on. Meanwhile a session holds a snapshot on each database, as a forgotten
//! session or a backup would, so that vacuum cannot remove deleted rows.
//!
//! Beyond the promises of every outage: the backlog is worked off at three times the rate of new
//! orders; the relay's queries of its outbox stay fast, although it is full of deleted rows; and
//! the outbox tables are small again after the snapshots end.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use checker::group_digits;
use futures::future::try_join_all;
use launcher::{Stack, eventually};
use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::{Connection, PgPool};
use tokio::time::{Instant, sleep};

use crate::checker::exits;
use crate::checker::run;
use crate::client::http_client::Client;
use crate::console::print_line;
use crate::console::print_step;
use crate::scenarios::proof::run_proof;
use crate::stack_description::SERVICES;
use crate::workload::load;
use crate::workload::options::Load;

const VICTIM: &str = "stock";

/// The load before stock is killed.
const WARMUP: Duration = Duration::from_secs(10);

/// The backlog must be worked off at this multiple of the rate of new orders.
const DRAIN_RATIO_MIN: f64 = 3.0;

/// The share of the outage for which the load goes on after it. At the slowest drain that passes,
/// half of the outage is enough.
const LOAD_TAIL_RATIO: f64 = 0.6;

/// The largest average duration of the relay's query over a few seconds. The longest single one is
/// printed and not checked, since it may coincide with other work of the disk.
const QUERY_TIME_MAX: Duration = Duration::from_millis(100);
const AVERAGING_WINDOW: Duration = Duration::from_secs(5);

/// The largest size of an empty outbox after vacuum. The size of its index is printed and not
/// checked: a B-tree keeps empty pages for later rows.
const EMPTY_BYTES_MAX: i64 = 4 * 1024 * 1024;
const VACUUM_TIMEOUT: Duration = Duration::from_secs(120);

/// The relay's query, by its column list: most queries only select, and some also delete
/// acknowledged rows, which stands before it.
const RELAY_QUERY: &str = "%select position, event_id, topic, key, schema_fingerprint%";

/// Options of a long outage.
#[derive(Clone, Debug, clap::Args)]
pub struct LongOutageOptions {
    /// Orders a second
    #[arg(long = "rate-per-second", default_value_t = 200)]
    pub rate: u32,
    /// How long stock is stopped
    #[arg(long, default_value_t = 10)]
    pub minutes: u64,
}

/// The measurements of one database during the outage.
struct ObservedDatabase {
    service: &'static str,
    db: PgPool,
    cluster: PgPool,
    snapshot: PgConnection,
    /// The slowest average of the relay's query over a few seconds, in microseconds.
    slowest_average_micros: AtomicU64,
}

/// The relay's queries so far: their number, total duration and longest duration, in milliseconds.
#[derive(sqlx::FromRow)]
struct QueryStatistics {
    count: i64,
    total_ms: f64,
    longest_ms: f64,
}

/// How the backlog was worked off.
struct Drain {
    backlog: i64,
    duration: Duration,
    orders_per_second: f64,
}

/// Runs the long outage, and returns whether all of it held. The stack is stopped again if it was
/// not up before.
pub async fn run(stack: &Stack, options: &LongOutageOptions) -> Result<bool> {
    let what = format!("{} minutes without {VICTIM}", options.minutes);
    run_proof(stack, &what, async |client| run_one(stack, client, options).await).await
}

/// Returns everything that was not as promised, as sentences.
async fn run_one(
    stack: &Stack,
    client: &Client,
    options: &LongOutageOptions,
) -> Result<Vec<String>> {
    let down = Duration::from_secs(options.minutes * 60);
    let lasting = WARMUP + down + down.mul_f64(LOAD_TAIL_RATIO);
    let load = Load {
        rate: options.rate,
        duration: lasting,
        drain_timeout: Duration::from_secs(120),
        ..Load::default()
    };
    print_step(1, &format!("{} orders a second for {} s", options.rate, lasting.as_secs()));
    let mut watched = Vec::new();
    for service in SERVICES {
        watched.push(ObservedDatabase::open(stack, service).await?);
    }
    let exits_before = stack.exits().await?;
    let story = async {
        tokio::select! {
            told = kill_and_recover(stack, &watched, options.rate, down) => told,
            broken = try_join_all(watched.iter().map(ObservedDatabase::watch)) => {
                Err(broken.err().context("the watch ended")?)
            }
        }
    };
    let (summary, drain) = load::run(client, &load, story).await?;

    print_step(2, "Every order is settled and must have ended");
    summary.lines().iter().for_each(|line| print_line(line));
    let mut failures = Vec::new();
    if !summary.holds() || !summary.answered_all() {
        failures.push("a promise to a client was broken (step 2)".to_string());
    }
    let times = drain.orders_per_second / f64::from(options.rate);
    print_line(&format!(
        "  backlog       {} orders, handled in {:.0} s beside new ones: {:.0}/s, {times:.1} times \
         the rate of new orders",
        group_digits(drain.backlog),
        drain.duration.as_secs_f64(),
        drain.orders_per_second
    ));
    if times < DRAIN_RATIO_MIN {
        failures
            .push(format!("the backlog shrank at only {times:.1} times the rate of new orders"));
    }

    print_step(3, "The relays' queries were fast, and the outboxes are small again");
    for watched in watched {
        failures.extend(watched.evaluate().await?);
    }

    print_step(4, "No event may be lost, no effect may happen twice (make verify)");
    let verdict = run::run(client, &run::CheckOptions::default()).await?;
    verdict.lines().iter().for_each(|line| print_line(line));
    if !verdict.holds() || verdict.dead_letters_waiting > 0 {
        failures.push("the checker found violations (step 4)".to_string());
    }
    let mut exits = stack.exits().await?;
    exits.retain(|exit| !exits_before.contains(exit));
    failures.extend(exits::unexpected_exits(&exits));
    Ok(failures)
}

/// Kills stock, waits, starts it, and measures the backlog.
async fn kill_and_recover(
    stack: &Stack,
    watched: &[ObservedDatabase],
    rate: u32,
    down: Duration,
) -> Result<Drain> {
    let orders = &watched[0].db;
    sleep(WARMUP).await;
    stack.kill(VICTIM).await?;
    print_line(&format!("  SIGKILL to {VICTIM}"));
    sleep(down).await;
    let backlog = pending_orders(orders).await?;
    print_line(&format!("  {} orders wait for {VICTIM}", group_digits(backlog)));
    ensure!(backlog > 0, "no order waited for {VICTIM}");
    // Until it is ready it handles nothing, and the backlog grows.
    let began = Instant::now();
    stack.start(VICTIM).await?;
    // Records of the last second are always in flight, and do not count.
    let mut left = backlog;
    while left > i64::from(rate) && began.elapsed() < down {
        sleep(Duration::from_millis(250)).await;
        left = pending_orders(orders).await?;
    }
    let took = began.elapsed();
    let ended = (backlog - left) as f64 + f64::from(rate) * took.as_secs_f64();
    print_line(&format!("  {VICTIM} has caught up, {:.0} s after its start", took.as_secs_f64()));
    Ok(Drain { backlog, duration: took, orders_per_second: ended / took.as_secs_f64() })
}

async fn pending_orders(orders: &PgPool) -> Result<i64> {
    let pending = "select count(*) from orders where status = 'pending'";
    Ok(sqlx::query_scalar(pending).fetch_one(orders).await?)
}

impl ObservedDatabase {
    /// Opens the snapshot, and resets the statistics of the relay's queries.
    async fn open(stack: &Stack, service: &'static str) -> Result<ObservedDatabase> {
        let pool = PgPoolOptions::new().max_connections(2);
        let cluster = pool.clone().connect(&stack.maintenance_database_url(service)?).await?;
        sqlx::query("create extension if not exists pg_stat_statements").execute(&cluster).await?;
        sqlx::query("select pg_stat_statements_reset()").execute(&cluster).await?;
        let db = pool.connect(&stack.database_url(service)?).await?;
        let mut snapshot = PgConnection::connect(&stack.database_url(service)?).await?;
        for statement in [
            "set idle_in_transaction_session_timeout = 0",
            "begin isolation level repeatable read",
            "select count(*) from chassis.outbox",
        ] {
            sqlx::query(statement).execute(&mut snapshot).await?;
        }
        Ok(ObservedDatabase {
            service,
            db,
            cluster,
            snapshot,
            slowest_average_micros: AtomicU64::new(0),
        })
    }

    async fn query_statistics(&self) -> Result<QueryStatistics> {
        let statistics = sqlx::query_as(
            "select coalesce(sum(calls), 0)::bigint as count,
                    coalesce(sum(total_exec_time), 0)::float8 as took_ms,
                    coalesce(max(max_exec_time), 0)::float8 as longest_ms
             from pg_stat_statements
             where query like $1 and dbid = (select oid from pg_database where datname = $2)",
        );
        Ok(statistics.bind(RELAY_QUERY).bind(self.service).fetch_one(&self.cluster).await?)
    }

    /// Records the slowest queries until the future is dropped.
    async fn watch(&self) -> Result<Infallible> {
        let mut before = self.query_statistics().await?;
        loop {
            sleep(AVERAGING_WINDOW).await;
            let now = self.query_statistics().await?;
            let (count, took_ms) = (now.count - before.count, now.total_ms - before.total_ms);
            let micros = took_ms * 1_000.0 / count.max(1) as f64;
            self.slowest_average_micros.fetch_max(micros as u64, Ordering::Relaxed);
            before = now;
        }
    }

    /// The size of the outbox and of its index.
    async fn outbox_bytes(&self) -> Result<(i64, i64)> {
        let size = "select pg_table_size('chassis.outbox'), pg_indexes_size('chassis.outbox')";
        Ok(sqlx::query_as(size).fetch_one(&self.db).await?)
    }

    /// Prints the relay's queries and the size of the outbox, and closes the snapshot.
    async fn evaluate(mut self) -> Result<Vec<String>> {
        let service = self.service;
        let QueryStatistics { count, total_ms: took_ms, longest_ms } =
            self.query_statistics().await?;
        ensure!(count > 0, "the statistics of {service} contain no query of the relay");
        let (full, _) = self.outbox_bytes().await?;
        sqlx::query("rollback").execute(&mut self.snapshot).await?;
        let cleared = eventually("the outbox to be small", VACUUM_TIMEOUT, async || {
            let (bytes, _) = self.outbox_bytes().await?;
            ensure!(bytes <= EMPTY_BYTES_MAX, "it has {bytes} bytes");
            Ok(())
        })
        .await;
        let slowest = self.slowest_average_micros.load(Ordering::Relaxed) as f64 / 1_000.0;
        let (now, index) = self.outbox_bytes().await?;
        let megabytes = |bytes| bytes as f64 / 1e6;
        print_line(&format!(
            "  {service:<12}  {} queries, {:.1} ms each, {slowest:.1} ms in the slowest 5 s, the longest \
             {longest_ms:.1} ms; the outbox grew to {:.1} MB and is {:.1} MB now, its index {:.1} MB",
            group_digits(count),
            took_ms / count as f64,
            megabytes(full),
            megabytes(now),
            megabytes(index)
        ));
        let mut failures = Vec::new();
        if slowest > QUERY_TIME_MAX.as_secs_f64() * 1_000.0 {
            failures.push(format!("the relay of {service} took {slowest:.0} ms a query"));
        }
        if let Err(error) = cleared.context(format!("the outbox of {service}")) {
            failures.push(format!("{error:#}"));
        }
        Ok(failures)
    }
}
