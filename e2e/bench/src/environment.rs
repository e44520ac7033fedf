//! The measured stack: its items and accounts, the loads on it, and the check that its books
//! balance afterwards.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::AtomicI64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use e2e::client::addresses::Addresses;
use e2e::client::http_client::Client;
use futures::{StreamExt, TryStreamExt, stream};
use launcher::{Stack, StackDescription, eventually};
use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use crate::access::Access;
use crate::completion_watch::CompletionWatch;
use crate::cpu_costs::{self, Costs};
use crate::loads::{Load, RunningLoad, Target};
use crate::other_commit::OtherCommit;
use crate::preload;
use crate::workload::{CUSTOMER_COUNT, Workload, customer_id, sku_name};
use crate::yardstick::{Yardstick, YardstickRunner};

/// Enough for every order of every run.
const DEPOSITED_CENTS: i64 = 10_000_000_000_000;
const DELIVERED_QUANTITY: i64 = 1_000_000_000;
const SKU_COUNT: usize = 10_000;
const PRICE_CENTS: i64 = 1_000;
const SEED_CONCURRENCY: usize = 256;

/// The interval at which the processor time of Java's compilers is read during warm-up.
const JIT_POLL_INTERVAL: Duration = Duration::from_secs(5);

/// Below this share of a core in this number of consecutive reads, the compilers have settled.
const JIT_IDLE_SHARE: f64 = 0.03;
const JIT_IDLE_POLLS: u32 = 2;

/// The timeout for the end of all orders of an overload.
pub const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);

pub struct BenchEnvironment {
    pub stack: Stack,
    pub yardstick: YardstickRunner,
    /// This lock keeps other processes from creating the same stack.
    _lock: File,
    pub client: Client,
    access: Option<Arc<Access>>,
    sku_count: usize,
    pub baseline: Baseline,
    /// The number of orders accepted since the baseline.
    pub accepted: AtomicI64,
}

/// The state at the beginning of the measurement.
pub struct Baseline {
    pub started_at: DateTime<Utc>,
    /// The sum of the orders that payment never received: the preloaded ones.
    pub unpaid_cents: i64,
}

impl BenchEnvironment {
    /// Starts the stack with this name, with items and rich customers, and on request with this number of preloaded
    /// orders, or with the services, the migrations and the contracts of another commit.
    pub async fn open(
        description: &StackDescription,
        name: &str,
        old: Option<i64>,
        pgbench: bool,
        version: Option<&OtherCommit>,
    ) -> Result<BenchEnvironment> {
        let lock = description.lock_exclusive_run(name).await?;
        let directory = description.state_directory()?.join(name);
        // The remains of an earlier stack, even if partly deleted.
        let left_behind = match Stack::open(description, &directory) {
            Ok(stack) => stack,
            Err(_) => Stack::on_free_ports(description, &directory)?,
        };
        preload::detach(&left_behind)?;
        left_behind.clean().await?;
        if let Some(count) = old {
            preload::create(&directory, count).await?;
        }
        let stack = Stack::on_free_ports(description, &directory)?;
        eprintln!("starting the stack in {} …", directory.display());
        if old.is_some() {
            preload::attach(&stack).await?;
        }
        version.map_or(Ok(()), |version| version.prepare(&stack))?;
        stack.up().await?;
        let mut addresses = Addresses::from_stack(&stack)?;
        version.map_or(Ok(()), |version| version.adapt(&mut addresses, &stack))?;
        let client = Client::new(addresses)?;
        let access = Access::to_stack(&stack)?;
        let yardstick = YardstickRunner::prepare(&stack, pgbench).await?;
        let mut environment = BenchEnvironment {
            stack,
            yardstick,
            _lock: lock,
            client,
            access,
            sku_count: 0,
            baseline: Baseline { started_at: Utc::now(), unpaid_cents: 0 },
            accepted: AtomicI64::new(0),
        };
        environment.seed(SKU_COUNT).await?;
        Ok(environment)
    }

    /// What has been spent so far.
    pub async fn measure_costs(&self) -> Result<Costs> {
        Costs::measure(&self.stack, &self.client.addresses).await
    }

    /// The memory of each component.
    pub async fn memory_bytes(&self) -> Result<BTreeMap<String, f64>> {
        cpu_costs::memory_bytes(&self.stack).await
    }

    /// Deletes the stack on this machine. It is stopped first, since a cluster with preloaded orders is kept.
    pub async fn close(self) -> Result<()> {
        self.stack.down().await?;
        preload::detach(&self.stack)?;
        self.stack.clean().await
    }

    /// Creates the missing items and accounts.
    pub async fn seed(&mut self, skus: usize) -> Result<()> {
        if self.sku_count >= skus {
            return Ok(());
        }
        let (known, client) = (self.sku_count, &self.client);
        if known == 0 {
            eprintln!("{CUSTOMER_COUNT} accounts …");
            let deposits = (0..CUSTOMER_COUNT).map(|nth| async move {
                client.deposit(customer_id(nth), DEPOSITED_CENTS, "bench").await.map(drop)
            });
            run_concurrently(deposits).await?;
        }
        eprintln!("{} items …", skus - known);
        let items = (known..skus).map(|nth| async move {
            let sku = sku_name(nth);
            client.put_item(&sku, "An item to be measured with", PRICE_CENTS).await?;
            client.deliver(&sku, DELIVERED_QUANTITY, "bench").await.map(drop)
        });
        run_concurrently(items).await?;
        eventually("the order service to know all items", SETTLE_TIMEOUT, async || {
            let mut db = self.connect_database().await?;
            let known: i64 =
                sqlx::query_scalar("select count(*) from items").fetch_one(&mut db).await?;
            ensure!(usize::try_from(known)? >= skus, "it has {known}");
            Ok(())
        })
        .await?;
        self.sku_count = skus;
        Ok(())
    }

    /// Runs the yardstick, with one client or with many.
    pub async fn run_yardstick(&self, lasting: Duration, alone: bool) -> Result<Yardstick> {
        self.yardstick.run(&self.stack, &self.client.addresses, lasting, alone).await
    }

    /// Begins to place orders.
    pub fn start_load(&self, workload: Workload, load: Load) -> Result<RunningLoad> {
        let address = |url: &String| -> Result<SocketAddr> {
            let address = url.split_once("://").map_or(&**url, |(_, address)| address);
            let found = address.to_socket_addrs().with_context(|| url.clone())?.next();
            found.with_context(|| format!("{url} has no address"))
        };
        let apis = self.order_urls()?.iter().map(address).collect::<Result<_>>()?;
        let completions = Arc::new(CompletionWatch::start(&self.client.addresses.kafka)?);
        let access = self.access.clone();
        Ok(load.start(Target { apis, access, completions, workload }))
    }

    /// The APIs of the order service's instances.
    fn order_urls(&self) -> Result<Vec<String>> {
        let instances = self.stack.instances_of("order")?;
        instances.iter().map(|name| self.stack.url(name)).collect()
    }

    /// Runs a load until Java's compilers have settled, since they take processor time of the
    /// measurement until then. Returns how long that was, and their share in the end.
    pub async fn warm_up(&self, at_most: Duration) -> Result<String> {
        eprintln!("warming up …");
        let load = self.start_load(Workload::default(), Load::SATURATING)?;
        let stack = &self.stack;
        let (began, mut jit_time) = (Instant::now(), cpu_costs::jit_cpu_time(stack).await?);
        let mut idle_polls = 0;
        let share = loop {
            let polled_at = Instant::now();
            tokio::time::sleep(JIT_POLL_INTERVAL).await;
            let now = cpu_costs::jit_cpu_time(stack).await?;
            let took = now.saturating_sub(std::mem::replace(&mut jit_time, now));
            let share = took.as_secs_f64() / polled_at.elapsed().as_secs_f64();
            idle_polls = if share < JIT_IDLE_SHARE { idle_polls + 1 } else { 0 };
            if idle_polls == JIT_IDLE_POLLS || began.elapsed() >= at_most {
                break share;
            }
        };
        self.finish(&*load.stop().await?).await?;
        let (seconds, percent) = (began.elapsed().as_secs(), 100.0 * share);
        Ok(format!("for {seconds} s; Java's compilers took {percent:.1} % of a core in the end"))
    }

    pub async fn connect_database(&self) -> Result<PgConnection> {
        Ok(PgConnection::connect(&self.client.addresses.databases["order"]).await?)
    }
}

/// Ids grow with time: no later order has a smaller one.
pub fn min_id_at(at: DateTime<Utc>) -> Result<Uuid> {
    Ok(Uuid::from_u128(u128::try_from(at.timestamp_millis())? << 80))
}

/// Sends many requests, with a bounded number of them at a time.
async fn run_concurrently(
    requests: impl Iterator<Item = impl Future<Output = Result<()>>>,
) -> Result<()> {
    stream::iter(requests).buffer_unordered(SEED_CONCURRENCY).try_collect().await
}
