//! What a long outage adds: the victim is down for minutes while orders go on, comes back, and has to
//! catch up while they still go on. Meanwhile a session holds a snapshot on each database, as a
//! forgotten session or a backup would, so that vacuum cannot remove deleted rows.
//!
//! Beyond the promises of every outage: the backlog is worked off at three times the rate of new
//! orders; the relay's queries of its outbox stay fast, although it is full of deleted rows; and
//! the outbox tables are small again after the snapshots end.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use checker::group_digits;
use launcher::{Stack, eventually};
use sqlx::PgPool;
use sqlx::postgres::{PgPoolOptions, PgTransaction};
use tokio::time::{Instant, sleep};

use crate::console::print_line;
use crate::scenarios::runner::Report;

/// The backlog must be worked off at this multiple of the rate of new orders.
const DRAIN_RATIO_MIN: f64 = 3.0;

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

/// The measurements of one database during the outage.
pub struct ObservedDatabase {
    service: String,
    db: PgPool,
    cluster: PgPool,
    snapshot: PgTransaction<'static>,
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
pub struct Drain {
    backlog: i64,
    duration: Duration,
    orders_per_second: f64,
}

impl Drain {
    /// Waits until a victim has caught up. Its start began the drain: until it is ready it handles nothing, and the
    /// backlog grows.
    pub async fn wait(
        orders: &ObservedDatabase,
        backlog: i64,
        rate: u32,
        began: Instant,
        within: Duration,
    ) -> Result<Drain> {
        // Records of the last second are always in flight, and do not count.
        let mut left = backlog;
        while left > i64::from(rate) && began.elapsed() < within {
            sleep(Duration::from_millis(250)).await;
            left = orders.pending_orders().await?;
        }
        let duration = began.elapsed();
        let ended = (backlog - left) as f64 + f64::from(rate) * duration.as_secs_f64();
        print_line(&format!("  it has caught up, {:.0} s after its start", duration.as_secs_f64()));
        Ok(Drain { backlog, duration, orders_per_second: ended / duration.as_secs_f64() })
    }

    /// It was fast enough.
    pub fn evaluate(&self, rate: u32, report: &mut Report) {
        let times = self.orders_per_second / f64::from(rate);
        print_line(&format!(
            "  backlog       {} orders, handled in {:.0} s beside new ones: {:.0}/s, {times:.1} times \
             the rate of new orders",
            group_digits(self.backlog),
            self.duration.as_secs_f64(),
            self.orders_per_second
        ));
        report.require(times >= DRAIN_RATIO_MIN, || {
            format!("the backlog shrank at only {times:.1} times the rate of new orders")
        });
    }
}

impl ObservedDatabase {
    /// Opens the snapshot, and resets the statistics of the relay's queries.
    pub async fn open(stack: &Stack, service: &str) -> Result<ObservedDatabase> {
        let pool = PgPoolOptions::new().max_connections(3);
        let cluster = pool.clone().connect(&stack.maintenance_database_url(service)?).await?;
        sqlx::query("create extension if not exists pg_stat_statements").execute(&cluster).await?;
        sqlx::query("select pg_stat_statements_reset()").execute(&cluster).await?;
        let db = pool.connect(&stack.database_url(service)?).await?;
        let mut snapshot = db.begin_with("begin isolation level repeatable read").await?;
        for statement in [
            "set local idle_in_transaction_session_timeout = 0",
            "select count(*) from chassis.outbox",
        ] {
            sqlx::query(statement).execute(&mut *snapshot).await?;
        }
        let slowest_average_micros = AtomicU64::new(0);
        let service = service.to_string();
        Ok(ObservedDatabase { service, db, cluster, snapshot, slowest_average_micros })
    }

    /// The number of orders that wait for the victim.
    pub async fn backlog(&self, victim: &str) -> Result<i64> {
        let backlog = self.pending_orders().await?;
        print_line(&format!("  {} orders wait for {victim}", group_digits(backlog)));
        ensure!(backlog > 0, "no order waited for {victim}");
        Ok(backlog)
    }

    async fn pending_orders(&self) -> Result<i64> {
        let pending = "select count(*) from orders where status = 'pending'";
        Ok(sqlx::query_scalar(pending).fetch_one(&self.db).await?)
    }

    async fn query_statistics(&self) -> Result<QueryStatistics> {
        let statistics = sqlx::query_as(
            "select coalesce(sum(calls), 0)::bigint as count,
                    coalesce(sum(total_exec_time), 0)::float8 as total_ms,
                    coalesce(max(max_exec_time), 0)::float8 as longest_ms
             from pg_stat_statements
             where query like $1 and dbid = (select oid from pg_database where datname = $2)",
        );
        Ok(statistics.bind(RELAY_QUERY).bind(&self.service).fetch_one(&self.cluster).await?)
    }

    /// Records the slowest queries until the future is dropped.
    pub async fn watch(&self) -> Result<Infallible> {
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
    async fn outbox_bytes(db: &PgPool) -> Result<(i64, i64)> {
        let size = "select pg_table_size('chassis.outbox'), pg_indexes_size('chassis.outbox')";
        Ok(sqlx::query_as(size).fetch_one(db).await?)
    }

    /// Prints the relay's queries and the size of the outbox, closes the snapshot, and reports
    /// what was not as promised.
    pub async fn evaluate(self, report: &mut Report) -> Result<()> {
        let QueryStatistics { count, total_ms, longest_ms } = self.query_statistics().await?;
        let ObservedDatabase { service, db, snapshot, slowest_average_micros, .. } = self;
        ensure!(count > 0, "the statistics of {service} contain no query of the relay");
        let (full, _) = Self::outbox_bytes(&db).await?;
        snapshot.rollback().await?;
        let cleared = eventually("the outbox to be small", VACUUM_TIMEOUT, async || {
            let (bytes, _) = Self::outbox_bytes(&db).await?;
            ensure!(bytes <= EMPTY_BYTES_MAX, "it has {bytes} bytes");
            Ok(())
        })
        .await;
        let slowest = slowest_average_micros.load(Ordering::Relaxed) as f64 / 1_000.0;
        let (now, index) = Self::outbox_bytes(&db).await?;
        let [full, now, index] = [full, now, index].map(|bytes| bytes as f64 / 1e6);
        print_line(&format!(
            "  {service:<12}  {} queries, {:.1} ms each, {slowest:.1} ms in the slowest 5 s, the longest \
             {longest_ms:.1} ms; the outbox grew to {full:.1} MB and is {now:.1} MB now, its index {index:.1} MB",
            group_digits(count),
            total_ms / count as f64
        ));
        let slow = || format!("the relay of {service} took {slowest:.0} ms a query");
        report.require(slowest <= QUERY_TIME_MAX.as_secs_f64() * 1_000.0, slow);
        if let Err(error) = cleared.context(format!("the outbox of {service}")) {
            report.violations.push(format!("{error:#}"));
        }
        Ok(())
    }
}
