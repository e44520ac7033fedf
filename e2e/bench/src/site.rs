//! The stack that is measured, and one measurement on it.

use std::fs::File;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use e2e::client::Client;
use e2e::stack::{lock_run, state_directory};
use e2e::wait::eventually;
use e2e::{Ports, Stack};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use uuid::Uuid;

use crate::costs::{self, Costs};
use crate::ends::Ends;
use crate::loads::{Load, Running, Target, Told, counted, percentile};
use crate::old;
use crate::parts::Plan;
use crate::report::Run;
use crate::wishes::{CUSTOMERS, Wishes, customer, sku_of};
use crate::yardstick;

/// Enough for every order of every run.
const DEPOSITED_CENTS: i64 = 10_000_000_000_000;
const DELIVERED: i64 = 1_000_000_000;
const SKUS: usize = 10_000;
const PRICE_CENTS: i64 = 1_000;
const PROVIDED_AT_ONCE: usize = 256;

/// How often, while it warms up, it is asked what Java's compilers take.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Below this share of a core, in so many looks on end, they have settled.
const CALM: f64 = 0.03;
const CALM_LOOKS: u32 = 2;

/// Until all of an overload has ended.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

pub struct Site {
    pub stack: Stack,
    pub client: Client,
    pub yardstick: yardstick::Bench,
    skus: usize,
    begun: Begun,
    /// Orders that were accepted since.
    accepted: AtomicI64,
    /// Nobody else makes this stack anew meanwhile.
    _lock: File,
}

/// Where the accounts of what is measured begin.
struct Begun {
    at: DateTime<Utc>,
    /// What orders came to that payment never heard of: the old ones.
    untaken_cents: i64,
}

impl Site {
    /// Starts the stack of this name, with items and rich customers; with so many old orders at
    /// hand, if they are wanted.
    pub async fn open(name: &str, old: Option<i64>, pgbench: bool) -> Result<Site> {
        let lock = lock_run(name).await?;
        let directory = state_directory()?.join(name);
        // Whatever is left behind of an earlier one, be it half deleted.
        let left_behind = match Stack::open(&directory) {
            Ok(stack) => stack,
            Err(_) => Stack::at(&directory, Ports::free()?)?,
        };
        old::give_back(&left_behind)?;
        left_behind.clean().await?;
        if let Some(count) = old {
            old::make(&directory, count).await?;
        }
        let stack = Stack::at(&directory, Ports::free()?)?.quiet();
        eprintln!("starting the stack in {} …", directory.display());
        if old.is_some() {
            old::lend(&stack).await?;
        }
        stack.up().await?;
        let client = Client::of(&stack)?;
        let yardstick = yardstick::Bench::prepare(&stack, pgbench).await?;
        let begun = Begun { at: Utc::now(), untaken_cents: 0 };
        let (skus, accepted) = (0, AtomicI64::new(0));
        let mut site = Site { stack, client, yardstick, skus, begun, accepted, _lock: lock };
        site.provide(SKUS).await?;
        Ok(site)
    }

    /// Forgets the stack; stopped first, since a cluster with old orders outlives it.
    pub async fn close(self) -> Result<()> {
        self.stack.down().await?;
        old::give_back(&self.stack)?;
        self.stack.clean().await
    }

    /// Items, and money, as far as they are missing.
    pub async fn provide(&mut self, skus: usize) -> Result<()> {
        if self.skus >= skus {
            return Ok(());
        }
        let (known, client) = (self.skus, &self.client);
        if known == 0 {
            eprintln!("{CUSTOMERS} accounts …");
            let deposits = (0..CUSTOMERS).map(|nth| async move {
                client.deposit(customer(nth), DEPOSITED_CENTS, "bench").await.map(drop)
            });
            at_once(deposits).await?;
        }
        eprintln!("{} items …", skus - known);
        let items = (known..skus).map(|nth| async move {
            let sku = sku_of(nth);
            client.put_item(&sku, "An item to be measured with", PRICE_CENTS).await?;
            client.deliver(&sku, DELIVERED, "bench").await.map(drop)
        });
        at_once(items).await?;
        eventually("the order service to know all items", SETTLED_WITHIN, async || {
            let mut db = self.database().await?;
            let known: i64 =
                sqlx::query_scalar("select count(*) from items").fetch_one(&mut db).await?;
            ensure!(usize::try_from(known)? >= skus, "it knows {known}");
            Ok(())
        })
        .await?;
        self.skus = skus;
        Ok(())
    }

    /// Lets the order service work with the old orders, or without, and begins the accounts anew.
    pub async fn bring_old(&mut self, old: bool) -> Result<()> {
        old::bring(&mut self.database().await?, old).await?;
        let [order, payment, _] = self.books().await?;
        self.begun = Begun { at: Utc::now(), untaken_cents: untaken_cents(&order, &payment)? };
        *self.accepted.get_mut() = 0;
        Ok(())
    }

    /// Begins to place orders.
    pub fn start(&self, wishes: Wishes, load: Load) -> Result<Running> {
        let apis = self.stack.instances_of("order")?;
        let address = |name: &String| -> Result<SocketAddr> {
            let url = self.stack.url(name)?;
            url.trim_start_matches("http://").parse().with_context(|| url.clone())
        };
        let apis = apis.iter().map(address).collect::<Result<_>>()?;
        let ends = Arc::new(Ends::watch(&self.stack.kafka_bootstrap()?)?);
        Ok(load.start(Target { apis, ends, wishes }))
    }

    /// Waits until every order of a load that is over has ended.
    pub async fn finish(&self, told: &Told) -> Result<()> {
        let accepted = told.accepted.load(Ordering::Relaxed);
        self.accepted.fetch_add(i64::try_from(accepted)?, Ordering::Relaxed);
        self.settled().await
    }

    /// Until Java's compilers have seen it all: they take up to half a core until then, and Kafka several
    /// times as much for each order. Tells how long that was, and what they took in the end.
    pub async fn warm_up(&self, at_most: Duration) -> Result<String> {
        eprintln!("warming up …");
        let load = self.start(Wishes::default(), Load::MANY)?;
        let (began, mut compiling) = (Instant::now(), costs::compiling(&self.stack).await?);
        let mut calm = 0;
        let share = loop {
            let looked = Instant::now();
            tokio::time::sleep(LOOK_EVERY).await;
            let now = costs::compiling(&self.stack).await?;
            let took = now.saturating_sub(std::mem::replace(&mut compiling, now));
            let share = took.as_secs_f64() / looked.elapsed().as_secs_f64();
            calm = if share < CALM { calm + 1 } else { 0 };
            if calm == CALM_LOOKS || began.elapsed() >= at_most {
                break share;
            }
        };
        self.finish(&*load.stop().await?).await?;
        let (seconds, percent) = (began.elapsed().as_secs(), 100.0 * share);
        Ok(format!("for {seconds} s; Java's compilers took {percent:.1} % of a core in the end"))
    }

    /// Lets a load run for a while, then measures it, then lets it end. What is counted is what the
    /// decider committed between the two looks at the clock.
    pub async fn measure(
        &self,
        name: &str,
        wishes: Wishes,
        load: Load,
        plan: &Plan,
    ) -> Result<Run> {
        let offered = match load {
            Load::PerSecond(offered) => Some(offered),
            Load::Callers(_) => None,
        };
        let load = self.start(wishes, load)?;
        tokio::time::sleep(plan.warm).await;
        let told = load.told.clone();
        let load_average = costs::load_average();
        let before = Costs::now(&self.stack).await?;
        let refused_before = told.refused.load(Ordering::Relaxed);
        told.open_window(plan.lasting);
        tokio::time::sleep(plan.lasting).await;
        let refused = told.refused.load(Ordering::Relaxed) - refused_before;
        let after = Costs::now(&self.stack).await?;
        let memory = costs::memory_bytes(&self.stack).await?;
        self.finish(&*load.stop().await?).await?;
        let ended = self.ended_between(before.at, after.at).await?;
        let commits = self.commits(&told, before.at).await?;
        let (spent, seconds) = (after.since(&before), (after.at - before.at).as_seconds_f64());
        let mut run = Run::of(name, &spent, ended as f64, seconds);
        for (member, bytes) in memory {
            run.set(&format!("MB {member}"), bytes / 1e6);
        }
        for (what, figure) in [
            ("placed/s", counted(&told.post)? as f64 / plan.lasting.as_secs_f64()),
            ("refused/s", refused as f64 / plan.lasting.as_secs_f64()),
            ("POST p50 ms", percentile(&told.post, 50.0)),
            ("POST p99 ms", percentile(&told.post, 99.0)),
            ("end p50 ms", percentile(&told.end, 50.0)),
            ("end p99 ms", percentile(&told.end, 99.0)),
            ("load average", load_average),
        ] {
            run.set(what, figure);
        }
        // Of fewer it would be one of the ten slowest.
        if counted(&told.end)? >= 10_000 {
            run.set("end p99.9 ms", percentile(&told.end, 99.9));
        }
        if let Some(offered) = offered {
            run.set("offered/s", offered);
            let turned_away = told.turned_away.load(Ordering::Relaxed);
            run.set("turned away/s", turned_away as f64 / plan.lasting.as_secs_f64());
        }
        for (what, of) in [("commit p50 ms", 0.5), ("commit p99 ms", 0.99)] {
            if let Some(took) = commits.get((commits.len() as f64 * of) as usize) {
                run.set(what, *took);
            }
        }
        eprintln!("{}", run.line());
        Ok(run)
    }

    /// Nothing is reported of a stack that lost an order or whose books don't balance. Old orders
    /// stand in the books alone, which read all there is.
    async fn settled(&self) -> Result<()> {
        let mut db = self.database().await?;
        let since = id_at(self.begun.at)?;
        eventually("all orders to have ended", SETTLED_WITHIN, async || {
            let pending: i64 = sqlx::query_scalar(
                "select count(*) from orders where order_id >= $1
                 and (status = 'pending' or payment = 'waiting' or stock = 'waiting')",
            )
            .bind(since)
            .fetch_one(&mut self.database().await?)
            .await?;
            ensure!(pending == 0, "{pending} have not");
            Ok(())
        })
        .await?;
        let there: i64 = sqlx::query_scalar("select count(*) from orders where order_id >= $1")
            .bind(since)
            .fetch_one(&mut db)
            .await?;
        let accepted = self.accepted.load(Ordering::Relaxed);
        ensure!(there == accepted, "{accepted} orders were accepted and {there} are there");
        let [order, payment, _] = self.books().await?;
        let (untaken, before) = (untaken_cents(&order, &payment)?, self.begun.untaken_cents);
        ensure!(untaken == before, "orders come to {} more than payment took", untaken - before);
        let letters: i64 =
            sqlx::query_scalar("select count(*) from dead_letters").fetch_one(&mut db).await?;
        ensure!(letters == 0, "{letters} dead letters");
        let cancelled: i64 = sqlx::query_scalar(
            "select count(*) from orders where order_id >= $1 and status = 'cancelled'",
        )
        .bind(since)
        .fetch_one(&mut db)
        .await?;
        ensure!(cancelled == 0, "{cancelled} orders were cancelled, which is less work");
        Ok(())
    }

    async fn books(&self) -> Result<[Value; 3]> {
        let books = ["order", "payment", "stock"].map(|service| async move {
            let of: Value = self.client.books(service).await?;
            ensure!(of["balanced"] == json!(true), "the books of {service} don't balance: {of}");
            Ok(of)
        });
        let [order, payment, stock] = books;
        Ok([order.await?, payment.await?, stock.await?])
    }

    pub async fn database(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.stack.database_url("order")?).await?)
    }

    /// How long it took until the decider's commit, in milliseconds and in order, of orders that were
    /// confirmed: nothing changes their row afterwards. Postgres takes the time of a commit right
    /// before it flushes it. None, where it does not note it.
    async fn commits(&self, told: &Told, since: DateTime<Utc>) -> Result<Vec<f64>> {
        let mut db = self.database().await?;
        if !notes_commits(&mut db).await? {
            return Ok(Vec::new());
        }
        let committed: Vec<(Uuid, DateTime<Utc>)> = sqlx::query_as(
            "select order_id, pg_xact_commit_timestamp(xmin) from orders
             where order_id >= $1 and status = 'confirmed'",
        )
        .bind(id_at(since)?)
        .fetch_all(&mut db)
        .await?;
        let orders = told.orders.lock().unwrap_or_else(PoisonError::into_inner);
        let took = |(order_id, at): (Uuid, DateTime<Utc>)| {
            Some((at - *orders.get(&order_id)?).as_seconds_f64() * 1e3)
        };
        let mut took: Vec<f64> = committed.into_iter().filter_map(took).collect();
        took.sort_by(f64::total_cmp);
        Ok(took)
    }

    /// Orders whose end was committed in a span of time, by the database's clock, which is this machine's;
    /// whose transaction began in it, where Postgres does not note when it commits.
    async fn ended_between(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> Result<i64> {
        let mut db = self.database().await?;
        let at = if notes_commits(&mut db).await? {
            "pg_xact_commit_timestamp(xmin)"
        } else {
            "ended_at"
        };
        let count = sqlx::query_scalar(AssertSqlSafe(format!(
            "select count(*) from orders
             where order_id >= $1 and ended_at >= $2 - interval '1 minute' and {at} >= $2 and {at} < $3"
        )))
        .bind(id_at(self.begun.at)?)
        .bind(from)
        .bind(to)
        .fetch_one(&mut db)
        .await?;
        Ok(count)
    }
}

/// Whether Postgres notes when a transaction commits.
async fn notes_commits(db: &mut PgConnection) -> Result<bool> {
    let noted: String = sqlx::query_scalar("show track_commit_timestamp").fetch_one(db).await?;
    Ok(noted == "on")
}

fn untaken_cents(order: &Value, payment: &Value) -> Result<i64> {
    let cents = |of: &Value| of.as_i64().context("books hold sums");
    Ok(cents(&order["confirmed_cents"])? - cents(&payment["taken_cents"])?)
}

/// Ids grow with time: no order that was placed later has a smaller one.
fn id_at(at: DateTime<Utc>) -> Result<Uuid> {
    Ok(Uuid::from_u128(u128::try_from(at.timestamp_millis())? << 80))
}

/// Many requests, a bounded number of them at a time.
async fn at_once(requests: impl Iterator<Item = impl Future<Output = Result<()>>>) -> Result<()> {
    stream::iter(requests).buffer_unordered(PROVIDED_AT_ONCE).try_collect().await
}
