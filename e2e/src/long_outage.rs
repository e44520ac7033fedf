//! The long outage: stock is away for minutes while orders go on, comes back, and has to catch up
//! while they still go on. All that time a snapshot is held open on each database, as a forgotten
//! session or a backup would, so that nothing which was deleted can be cleared away.
//!
//! What has to hold beside what every outage has to: what waited is worked off at three times the rate
//! at which orders come; the relay's looks at its outbox stay quick, although it is full of what was
//! deleted; and the outbox tables are small again once the snapshots are gone.

use std::convert::Infallible;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use sqlx::postgres::{PgConnection, PgPoolOptions};
use sqlx::{Connection, PgPool};
use tokio::time::{Instant, sleep};

use crate::client::Client;
use crate::figures::grouped;
use crate::load::{self, Load};
use crate::narration::{proved, say, step};
use crate::topology::SERVICES;
use crate::wait::eventually;
use crate::{Stack, ends, verify};

const VICTIM: &str = "stock";

/// Before stock is killed: so long does everything go well.
const CALM: Duration = Duration::from_secs(10);

/// What waited has to be worked off at so many times the rate of new orders.
const DRAIN_MIN: f64 = 3.0;

/// The load goes on for this share of the outage after it. At the slowest drain that passes, half of
/// the outage is enough.
const LOADED_AFTER: f64 = 0.6;

/// How long the relay's looks may take, on average over a few seconds. (A single one may coincide with
/// whatever the machine's disk is doing: the longest is said and not judged.)
const LOOK_MAX: Duration = Duration::from_millis(100);
const LOOKS_AVERAGED_OVER: Duration = Duration::from_secs(5);

/// An outbox that is empty is no larger than this once vacuum has been there. Its index is said and not
/// judged: a B-tree's file keeps the pages that fell empty, for the rows to come.
const EMPTY_BYTES_MAX: i64 = 4 * 1024 * 1024;
const CLEARED_WITHIN: Duration = Duration::from_secs(120);

/// The relay's look, by what it selects: most looks do nothing else, and some also delete what was
/// acknowledged, which stands before it.
const LOOK: &str = "%select position, event_id, topic, key, schema_fingerprint%";

/// A long outage.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Orders a second
    #[arg(long = "rate-per-second", default_value_t = 200)]
    pub rate: u32,
    /// How long stock is away
    #[arg(long, default_value_t = 10)]
    pub minutes: u64,
}

/// What is known of one database while the outage lasts.
struct Watched {
    service: &'static str,
    db: PgPool,
    cluster: PgPool,
    snapshot: PgConnection,
    /// The slowest few seconds of the relay's looks, on average, in microseconds.
    slowest_micros: AtomicU64,
}

/// The relay's looks so far: how many, how long they took in all, and the longest, in milliseconds.
#[derive(sqlx::FromRow)]
struct Looks {
    count: i64,
    took_ms: f64,
    longest_ms: f64,
}

/// What became of the backlog.
struct Drain {
    backlog: i64,
    took: Duration,
    orders_per_second: f64,
}

/// Runs it, and answers whether all of it held. The stack is taken down again if it was not up before.
pub async fn run(stack: &Stack, options: &Options) -> Result<bool> {
    let what = format!("{} minutes without {VICTIM}", options.minutes);
    proved(stack, &what, async |client| one(stack, client, options).await).await
}

/// Answers what was not as promised, in sentences.
async fn one(stack: &Stack, client: &Client, options: &Options) -> Result<Vec<String>> {
    let down = Duration::from_secs(options.minutes * 60);
    let lasting = CALM + down + down.mul_f64(LOADED_AFTER);
    let load = Load {
        rate: options.rate,
        lasting,
        drained_within: Duration::from_secs(120),
        ..Load::default()
    };
    step(1, &format!("{} orders a second for {} s", options.rate, lasting.as_secs()));
    let mut watched = Vec::new();
    for service in SERVICES {
        watched.push(Watched::open(stack, service).await?);
    }
    let ended_before = stack.ends().await?;
    let story = async {
        tokio::select! {
            told = outage(stack, &watched, options.rate, down) => told,
            broken = try_join_all(watched.iter().map(Watched::watch)) => {
                Err(broken.err().context("the watch ended")?)
            }
        }
    };
    let (summary, drain) = load::run(client, &load, story).await?;

    step(2, "Every order is settled and must have ended");
    summary.lines().iter().for_each(|line| say(line));
    let mut faults = Vec::new();
    if !summary.holds() || !summary.answered_all() {
        faults.push("the promise to a client was broken (step 2)".to_string());
    }
    let times = drain.orders_per_second / f64::from(options.rate);
    say(&format!(
        "  backlog       {} orders, worked off in {:.0} s beside new ones: {:.0}/s, {times:.1} times \
         the rate at which they come",
        grouped(drain.backlog),
        drain.took.as_secs_f64(),
        drain.orders_per_second
    ));
    if times < DRAIN_MIN {
        faults.push(format!("the backlog went down at {times:.1} times the rate of new orders"));
    }

    step(3, "The relays' looks were quick, and the outboxes are small again");
    for watched in watched {
        faults.extend(watched.judged().await?);
    }

    step(4, "Nothing may be lost or done twice (make verify)");
    let verdict = verify::run(client, &verify::Options::default()).await?;
    verdict.lines().iter().for_each(|line| say(line));
    if !verdict.holds() || verdict.letters_waiting > 0 {
        faults.push("verify found something (step 4)".to_string());
    }
    let mut ends = stack.ends().await?;
    ends.retain(|end| !ended_before.contains(end));
    faults.extend(ends::deaths(&ends));
    Ok(faults)
}

/// Stock is killed, stays away, comes back, and works off what waited.
async fn outage(stack: &Stack, watched: &[Watched], rate: u32, down: Duration) -> Result<Drain> {
    let orders = &watched[0].db;
    sleep(CALM).await;
    stack.kill(VICTIM).await?;
    say(&format!("  SIGKILL to {VICTIM}"));
    sleep(down).await;
    let backlog = pending(orders).await?;
    say(&format!("  {} orders wait for {VICTIM}", grouped(backlog)));
    ensure!(backlog > 0, "nothing waited for {VICTIM}");
    // Until it is ready it works off nothing, and what waits goes on waiting.
    let began = Instant::now();
    stack.start(VICTIM).await?;
    // What is always under way does not count: as much as comes within a second.
    let mut left = backlog;
    while left > i64::from(rate) && began.elapsed() < down {
        sleep(Duration::from_millis(250)).await;
        left = pending(orders).await?;
    }
    let took = began.elapsed();
    let ended = (backlog - left) as f64 + f64::from(rate) * took.as_secs_f64();
    say(&format!("  {VICTIM} has caught up, {:.0} s after its start", took.as_secs_f64()));
    Ok(Drain { backlog, took, orders_per_second: ended / took.as_secs_f64() })
}

async fn pending(orders: &PgPool) -> Result<i64> {
    let pending = "select count(*) from orders where status = 'pending'";
    Ok(sqlx::query_scalar(pending).fetch_one(orders).await?)
}

impl Watched {
    /// Opens the snapshot, and counts the relay's looks from now on.
    async fn open(stack: &Stack, service: &'static str) -> Result<Watched> {
        let pool = PgPoolOptions::new().max_connections(2);
        let cluster = pool.clone().connect(&stack.cluster_url(service)?).await?;
        sqlx::query("create extension if not exists pg_stat_statements").execute(&cluster).await?;
        sqlx::query("select pg_stat_statements_reset()").execute(&cluster).await?;
        let db = pool.connect(&stack.database_url(service)?).await?;
        let mut snapshot = PgConnection::connect(&stack.database_url(service)?).await?;
        for statement in [
            "set idle_in_transaction_session_timeout = 0",
            "begin isolation level repeatable read",
            "select count(*) from outbox",
        ] {
            sqlx::query(statement).execute(&mut snapshot).await?;
        }
        Ok(Watched { service, db, cluster, snapshot, slowest_micros: AtomicU64::new(0) })
    }

    async fn looks(&self) -> Result<Looks> {
        let looks = sqlx::query_as(
            "select coalesce(sum(calls), 0)::bigint as count,
                    coalesce(sum(total_exec_time), 0)::float8 as took_ms,
                    coalesce(max(max_exec_time), 0)::float8 as longest_ms
             from pg_stat_statements
             where query like $1 and dbid = (select oid from pg_database where datname = $2)",
        );
        Ok(looks.bind(LOOK).bind(self.service).fetch_one(&self.cluster).await?)
    }

    /// Notes the slowest looks, for as long as it is let.
    async fn watch(&self) -> Result<Infallible> {
        let mut before = self.looks().await?;
        loop {
            sleep(LOOKS_AVERAGED_OVER).await;
            let now = self.looks().await?;
            let (count, took_ms) = (now.count - before.count, now.took_ms - before.took_ms);
            let micros = took_ms * 1_000.0 / count.max(1) as f64;
            self.slowest_micros.fetch_max(micros as u64, Ordering::Relaxed);
            before = now;
        }
    }

    /// How large the outbox is, and its index.
    async fn outbox_bytes(&self) -> Result<(i64, i64)> {
        let size = "select pg_table_size('outbox'), pg_indexes_size('outbox')";
        Ok(sqlx::query_as(size).fetch_one(&self.db).await?)
    }

    /// How the relay's looks went and what became of the outbox. Closes the snapshot.
    async fn judged(mut self) -> Result<Vec<String>> {
        let service = self.service;
        let Looks { count, took_ms, longest_ms } = self.looks().await?;
        ensure!(count > 0, "the statistics of {service} know no look of the relay's");
        let (full, _) = self.outbox_bytes().await?;
        sqlx::query("rollback").execute(&mut self.snapshot).await?;
        let cleared = eventually("the outbox to be small", CLEARED_WITHIN, async || {
            let (bytes, _) = self.outbox_bytes().await?;
            ensure!(bytes <= EMPTY_BYTES_MAX, "it has {bytes} bytes");
            Ok(())
        })
        .await;
        let slowest = self.slowest_micros.load(Ordering::Relaxed) as f64 / 1_000.0;
        let (now, index) = self.outbox_bytes().await?;
        let megabytes = |bytes| bytes as f64 / 1e6;
        say(&format!(
            "  {service:<12}  {} looks, {:.1} ms each, {slowest:.1} ms in the slowest 5 s, the longest \
             {longest_ms:.1} ms; the outbox grew to {:.1} MB and is {:.1} MB now, its index {:.1} MB",
            grouped(count),
            took_ms / count as f64,
            megabytes(full),
            megabytes(now),
            megabytes(index)
        ));
        let mut faults = Vec::new();
        if slowest > LOOK_MAX.as_secs_f64() * 1_000.0 {
            faults.push(format!("the relay of {service} took {slowest:.0} ms a look"));
        }
        if let Err(error) = cleared.context(format!("the outbox of {service}")) {
            faults.push(format!("{error:#}"));
        }
        Ok(faults)
    }
}
