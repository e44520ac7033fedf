//! The stack that is measured, and one measurement on it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use e2e::client::{Client, eventually};
use e2e::{Ports, Stack};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::costs::{self, Costs};
use crate::ends::Ends;
use crate::loads::{Running, Target, counted, percentile};
use crate::report::Run;
use crate::wishes::{CUSTOMERS, Wishes, customer, sku_of};
use crate::yardstick;

/// Enough for every order of every run.
const DEPOSITED_CENTS: i64 = 10_000_000_000_000;
const DELIVERED: i64 = 1_000_000_000;
const PRICE_CENTS: i64 = 1_000;
const PROVIDED_AT_ONCE: usize = 256;

/// Until all of an overload has ended.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

pub struct Site {
    pub stack: Stack,
    pub client: Client,
    pub yardstick: yardstick::Bench,
    skus: usize,
    /// Orders that were there when the site was opened.
    found: i64,
    /// Orders that were accepted since.
    accepted: AtomicI64,
}

impl Site {
    /// Starts the stack of this name, with so many items and rich customers.
    pub async fn open(name: &str, skus: usize) -> Result<Site> {
        let directory = e2e::stack::state_directory()?.join(name);
        if let Ok(left_behind) = Stack::open(&directory) {
            left_behind.clean().await?;
        }
        let stack = Stack::at(&directory, Ports::free()?)?.quiet();
        eprintln!("starting the stack in {} …", directory.display());
        stack.up().await?;
        let client = Client::of(&stack)?;
        let yardstick = yardstick::Bench::prepare(&stack).await?;
        let accepted = AtomicI64::new(0);
        let mut site = Site { stack, client, yardstick, skus: 0, found: 0, accepted };
        site.provide(skus).await?;
        site.found = site.orders().await?;
        Ok(site)
    }

    /// Items, and money, as far as they are missing.
    pub async fn provide(&mut self, skus: usize) -> Result<()> {
        if self.skus >= skus {
            return Ok(());
        }
        let known: i64 = self.of_order("select count(*) from items").await?;
        let (known, client) = (usize::try_from(known)?, &self.client);
        if known == 0 {
            eprintln!("{CUSTOMERS} accounts …");
            let deposits = (0..CUSTOMERS).map(|nth| async move {
                client.deposit(customer(nth), DEPOSITED_CENTS, "bench").await.map(drop)
            });
            at_once(deposits).await?;
        }
        if known < skus {
            eprintln!("{} items …", skus - known);
            let items = (known..skus).map(|nth| async move {
                let sku = sku_of(nth);
                client.put_item(&sku, "An item to be measured with", PRICE_CENTS).await?;
                client.deliver(&sku, DELIVERED, "bench").await.map(drop)
            });
            at_once(items).await?;
        }
        eventually("the order service to know all items", SETTLED_WITHIN, async || {
            let known: i64 = self.of_order("select count(*) from items").await?;
            ensure!(usize::try_from(known)? >= skus, "it knows {known}");
            Ok(())
        })
        .await?;
        self.skus = skus;
        Ok(())
    }

    pub fn target(&self, wishes: Wishes) -> Result<Target> {
        let apis = self.stack.instances_of("order")?;
        let address = |name: &String| -> Result<SocketAddr> {
            let url = self.stack.url(name)?;
            url.trim_start_matches("http://").parse().with_context(|| url.clone())
        };
        let ends = Arc::new(Ends::watch(&self.stack.kafka_bootstrap()?)?);
        Ok(Target { apis: apis.iter().map(address).collect::<Result<_>>()?, ends, wishes })
    }

    /// Lets a load run for a while, then measures it, then lets it end. What is counted is what the
    /// decider committed between the two looks at the clock.
    pub async fn measure(
        &self,
        name: &str,
        load: Running,
        warm: Duration,
        lasting: Duration,
    ) -> Result<Run> {
        tokio::time::sleep(warm).await;
        let told = load.told.clone();
        let load_before = costs::load_average();
        let before = Costs::now(&self.stack).await?;
        let (from, refused_before) = (Utc::now(), told.refused.load(Ordering::Relaxed));
        told.open_window(lasting);
        tokio::time::sleep(lasting).await;
        let (to, refused) = (Utc::now(), told.refused.load(Ordering::Relaxed));
        let after = Costs::now(&self.stack).await?;
        let told = load.stop().await?;
        self.count(told.accepted.load(Ordering::Relaxed));
        self.settled().await?;
        let ended = self.ended_between(from, to).await?;
        let seconds = (to - from).as_seconds_f64();
        let placed = counted(&told.post)?;
        let mut run = Run::of(name, &after.since(&before), ended as f64, seconds);
        for (what, figure) in [
            ("placed/s", placed as f64 / lasting.as_secs_f64()),
            ("refused/s", (refused - refused_before) as f64 / seconds),
            ("turned away", told.turned_away.load(Ordering::Relaxed) as f64),
            ("POST p50 ms", percentile(&told.post, 50.0)),
            ("POST p99 ms", percentile(&told.post, 99.0)),
            ("end p50 ms", percentile(&told.end, 50.0)),
            ("end p99 ms", percentile(&told.end, 99.0)),
            ("end p99.9 ms", percentile(&told.end, 99.9)),
            ("load average", load_before),
        ] {
            run.set(what, figure);
        }
        eprintln!("{}", run.line());
        Ok(run)
    }

    /// Nothing is reported of a stack that lost an order or whose books don't balance.
    pub async fn settled(&self) -> Result<()> {
        eventually("all orders to have ended", SETTLED_WITHIN, async || {
            let pending: i64 = self
                .of_order("select count(*) from orders where status = 'pending' or payment = 'waiting' or stock = 'waiting'")
                .await?;
            ensure!(pending == 0, "{pending} have not");
            Ok(())
        })
        .await?;
        let (there, accepted) =
            (self.orders().await? - self.found, self.accepted.load(Ordering::Relaxed));
        ensure!(there == accepted, "{accepted} orders were accepted and {there} are there");
        let mut books = Vec::new();
        for service in ["order", "payment", "stock"] {
            let of: Value = self.client.books(service).await?;
            ensure!(of["balanced"] == json!(true), "the books of {service} don't balance: {of}");
            books.push(of);
        }
        let (confirmed, taken) = (&books[0]["confirmed_cents"], &books[1]["taken_cents"]);
        ensure!(confirmed == taken, "orders come to {confirmed}, and payment took {taken}");
        let letters: i64 = self.of_order("select count(*) from dead_letters").await?;
        ensure!(letters == 0, "{letters} dead letters");
        Ok(())
    }

    /// Notes orders that were placed outside [`Site::measure`].
    pub fn count(&self, accepted: u64) {
        self.accepted.fetch_add(i64::try_from(accepted).unwrap_or(i64::MAX), Ordering::Relaxed);
    }

    async fn orders(&self) -> Result<i64> {
        self.of_order("select count(*) from orders").await
    }

    async fn of_order(&self, question: &'static str) -> Result<i64> {
        let mut db = PgConnection::connect(&self.stack.database_url("order")?).await?;
        let answer = sqlx::query_scalar(question).fetch_one(&mut db).await?;
        db.close().await?;
        Ok(answer)
    }

    /// Orders that ended in a span of time, by the database's clock, which is this machine's.
    pub async fn ended_between(&self, from: DateTime<Utc>, to: DateTime<Utc>) -> Result<i64> {
        let mut db = PgConnection::connect(&self.stack.database_url("order")?).await?;
        // Ids grow with time: no order that ended in the span is older than this.
        let oldest = (from - chrono::Duration::minutes(10)).timestamp_millis();
        let count = sqlx::query_scalar(
            "select count(*) from orders where order_id >= $1 and ended_at >= $2 and ended_at < $3",
        )
        .bind(Uuid::from_u128(u128::try_from(oldest)? << 80))
        .bind(from)
        .bind(to)
        .fetch_one(&mut db)
        .await?;
        db.close().await?;
        Ok(count)
    }
}

/// Many requests, a bounded number of them at a time.
async fn at_once(requests: impl Iterator<Item = impl Future<Output = Result<()>>>) -> Result<()> {
    stream::iter(requests).buffer_unordered(PROVIDED_AT_ONCE).try_collect().await
}
