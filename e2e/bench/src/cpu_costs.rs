//! The resources that the machine spent: processor time by process, memory, bytes on loopback and
//! on disk, and the work of the databases.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use checker::kafka;
use chrono::{DateTime, Utc};
use e2e::client::addresses::Addresses;
use events::saga_topics;
use launcher::Stack;
use launcher::proc_fs::ProcessIdentity;
use rdkafka::ClientConfig;
use sqlx::{Connection, PgConnection};

/// The name of this program in the results.
pub const LOAD_GENERATOR: &str = "load";

/// Sums since the start; the difference of two is the cost of the time between them.
#[derive(Clone, Debug)]
pub struct Costs {
    /// The time when the processor times were read, all of them within milliseconds.
    pub at: DateTime<Utc>,
    /// The processor time of each component and its exited children, in microseconds.
    pub cpu_micros: BTreeMap<String, f64>,
    /// The processor time of everything on this machine.
    pub busy_micros: f64,
    /// All else, by the names of its figures for each saga.
    pub sums: BTreeMap<&'static str, f64>,
}

/// What a database did since it was created. Rows include those of the catalogs.
const DATABASE_SUMS: &str = "
    select (pg_current_wal_lsn() - '0/0'::pg_lsn)::float8, pg_database_size(current_database())::float8,
           xact_commit::float8, (tup_inserted + tup_updated + tup_deleted)::float8
    from pg_stat_database where datname = current_database()";
const DATABASE_FIGURES: [&str; 4] =
    ["bytes/saga WAL", "bytes/saga tables", "work/saga commits", "work/saga rows"];

/// The figure of the records that the services published.
pub const PUBLISHED: &str = "work/saga events";

impl Costs {
    /// What each component of the stack and the load have spent.
    pub async fn measure(stack: &Stack, addresses: &Addresses) -> Result<Costs> {
        // Commits are counted between two readings, by the clock of the machine.
        let at = Utc::now();
        let mut times = stack.cpu_times();
        times.push((
            LOAD_GENERATOR.to_string(),
            ProcessIdentity::from_pid(std::process::id()).cpu_time(),
        ));
        let cpu_micros = sum_by_component(
            times.into_iter().map(|(name, time)| (name, time.as_secs_f64() * 1e6)),
        );
        let kafka = stack.directory().join("kafka").join("data");
        let mut sums = BTreeMap::from([
            (PUBLISHED, published_events(&addresses.kafka).await?),
            ("bytes/saga loopback", loopback_bytes()?),
            ("bytes/saga Kafka", bytes_in(&kafka)),
        ]);
        for url in addresses.databases.values() {
            let mut db = PgConnection::connect(url).await?;
            let (wal, tables, commits, rows): (f64, f64, f64, f64) =
                sqlx::query_as(DATABASE_SUMS).fetch_one(&mut db).await?;
            for (figure, sum) in DATABASE_FIGURES.into_iter().zip([wal, tables, commits, rows]) {
                *sums.entry(figure).or_default() += sum;
            }
            if let Some(statements) = statement_count(&mut db).await? {
                *sums.entry("work/saga statements").or_default() += statements;
            }
            db.close().await?;
        }
        Ok(Costs { at, cpu_micros, busy_micros: busy_micros()?, sums })
    }

    /// The cost since `earlier`.
    pub fn since(&self, earlier: &Costs) -> Costs {
        let spent = |(name, micros): (&String, &f64)| {
            (name.clone(), micros - earlier.cpu_micros.get(name).copied().unwrap_or_default())
        };
        Costs {
            at: self.at,
            cpu_micros: self.cpu_micros.iter().map(spent).collect(),
            busy_micros: self.busy_micros - earlier.busy_micros,
            sums: self
                .sums
                .iter()
                .map(|(figure, sum)| (*figure, sum - earlier.sums.get(figure).unwrap_or(&0.0)))
                .collect(),
        }
    }

    pub fn postgres_micros(&self) -> f64 {
        let databases = self.cpu_micros.iter().filter(|(name, _)| name.ends_with("-db"));
        databases.map(|(_, micros)| micros).sum()
    }

    pub fn all_micros(&self) -> f64 {
        self.cpu_micros.values().sum()
    }
}

/// The memory of each component. This is slow, since it reads every page: not for use during a
/// measurement.
pub async fn memory_bytes(stack: &Stack) -> Result<BTreeMap<String, f64>> {
    let held = stack.status().await?.into_iter();
    let mut held: Vec<_> =
        held.map(|component| (component.name, component.memory_bytes as f64)).collect();
    held.push((
        LOAD_GENERATOR.to_string(),
        ProcessIdentity::from_pid(std::process::id()).memory_bytes() as f64,
    ));
    Ok(sum_by_component(held))
}

/// The processor time of Java's compiler threads of all components so far. A thread that exits
/// takes its time with it.
pub async fn jit_cpu_time(stack: &Stack) -> Result<Duration> {
    let components = stack.status().await?.into_iter();
    let living = components.filter_map(|component| component.pid).map(ProcessIdentity::from_pid);
    let is_compiler =
        |name: &str| name.starts_with("C1 Compiler") || name.starts_with("C2 Compiler");
    Ok(living.map(|process| process.cpu_time_of_threads(is_compiler)).sum())
}

/// A second instance counts as its service.
fn sum_by_component(figures: impl IntoIterator<Item = (String, f64)>) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for (name, figure) in figures {
        let name = name.trim_end_matches(|last: char| last.is_ascii_digit() || last == '-');
        *sums.entry(name.to_string()).or_default() += figure;
    }
    sums
}

/// The records on the topics of the services. Queries of Kafka block, and callers must not wait for them.
async fn published_events(client: &ClientConfig) -> Result<f64> {
    let client = client.clone();
    let count = move || {
        let reader = kafka::create_consumer(&client, "bench")?;
        let mut count = 0;
        for topic in saga_topics() {
            let partitions = kafka::watermarks(&reader, topic.name)?;
            count += partitions.into_iter().map(|(_, end)| end).sum::<i64>();
        }
        anyhow::Ok(count as f64)
    };
    tokio::task::spawn_blocking(count).await?
}

/// How many statements a database has executed; `None` unless Postgres loads `pg_stat_statements`.
async fn statement_count(db: &mut PgConnection) -> Result<Option<f64>> {
    let libraries: String =
        sqlx::query_scalar("show shared_preload_libraries").fetch_one(&mut *db).await?;
    if !libraries.contains("pg_stat_statements") {
        return Ok(None);
    }
    let is_missing = "select to_regclass('pg_stat_statements') is null";
    if sqlx::query_scalar(is_missing).fetch_one(&mut *db).await? {
        sqlx::query("create extension pg_stat_statements").execute(&mut *db).await?;
    }
    let calls = "select sum(calls)::float8 from pg_stat_statements
                 where dbid = (select oid from pg_database where datname = current_database())";
    Ok(sqlx::query_scalar(calls).fetch_one(db).await?)
}

/// All processor time except idling and waiting for disks, in hundredths of a second as everywhere.
fn busy_micros() -> Result<f64> {
    let stat = fs::read_to_string("/proc/stat")?;
    let line = stat.lines().next().and_then(|line| line.strip_prefix("cpu "));
    let words = line.context("/proc/stat does not begin with all processors")?.split_whitespace();
    let ticks: Vec<f64> = words.filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; guests are part of user.
    Ok([0, 1, 2, 5, 6, 7].iter().filter_map(|nth| ticks.get(*nth)).sum::<f64>() * 10_000.0)
}

/// All bytes sent over loopback since the machine started.
fn loopback_bytes() -> Result<f64> {
    let devices = fs::read_to_string("/proc/net/dev")?;
    let line = devices.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
    let received = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    received.context("/proc/net/dev does not show the loopback device")
}

/// The bytes in the files of a directory.
fn bytes_in(directory: &Path) -> f64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0.0 };
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_in(&entry.path()),
        // Kafka's index files are preallocated; only written bytes count.
        Ok(found) if entry.path().extension().is_some_and(|kind| kind == "log") => {
            found.len() as f64
        }
        _ => 0.0,
    };
    entries.flatten().map(bytes).sum()
}

/// The number of runnable processes, averaged over a minute.
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or_default()
}
