//! What the machine spent: processor time by process, memory, bytes on loopback and on disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use e2e::Stack;
use e2e::topology::SERVICES;
use sqlx::{Connection, PgConnection};

/// Linux counts processor time in hundredths of a second on every architecture that Rust runs on.
const TICK_MICROS: f64 = 10_000.0;

/// The name under which this program itself is counted.
pub const LOAD: &str = "load";

/// Sums since the start of everything; the difference of two is what was spent between them.
#[derive(Clone, Debug, Default)]
pub struct Costs {
    /// Processor time of each member, with its ended children, in microseconds.
    pub cpu_micros: BTreeMap<String, f64>,
    /// What each holds now.
    pub memory_bytes: BTreeMap<String, u64>,
    pub loopback_bytes: f64,
    /// Write-ahead log and databases; Kafka's log.
    pub wal_bytes: f64,
    pub table_bytes: f64,
    pub kafka_bytes: f64,
}

impl Costs {
    pub async fn now(stack: &Stack) -> Result<Costs> {
        let processes = Processes::look()?;
        let mut costs = Costs::default();
        for status in stack.status().await? {
            let Some(pid) = status.pid else { continue };
            costs.add(&status.name, processes.family(pid));
        }
        costs.add(LOAD, processes.family(std::process::id()));
        costs.loopback_bytes = loopback_bytes()?;
        costs.kafka_bytes = bytes_in(&stack.directory().join("kafka").join("data"));
        for service in SERVICES {
            let mut db = PgConnection::connect(&stack.database_url(service)?).await?;
            let (wal, tables): (f64, f64) = sqlx::query_as(
                "select (pg_current_wal_lsn() - '0/0'::pg_lsn)::float8,
                        pg_database_size(current_database())::float8",
            )
            .fetch_one(&mut db)
            .await?;
            db.close().await?;
            costs.wal_bytes += wal;
            costs.table_bytes += tables;
        }
        Ok(costs)
    }

    fn add(&mut self, name: &str, (micros, memory): (f64, u64)) {
        // A second instance counts as its service.
        let name = name.trim_end_matches(|last: char| last.is_ascii_digit() || last == '-');
        *self.cpu_micros.entry(name.to_string()).or_default() += micros;
        *self.memory_bytes.entry(name.to_string()).or_default() += memory;
    }

    /// What was spent since `earlier`; memory is what is held now.
    pub fn since(&self, earlier: &Costs) -> Costs {
        let spent = |(name, micros): (&String, &f64)| {
            (name.clone(), micros - earlier.cpu_micros.get(name).copied().unwrap_or_default())
        };
        Costs {
            cpu_micros: self.cpu_micros.iter().map(spent).collect(),
            memory_bytes: self.memory_bytes.clone(),
            loopback_bytes: self.loopback_bytes - earlier.loopback_bytes,
            wal_bytes: self.wal_bytes - earlier.wal_bytes,
            table_bytes: self.table_bytes - earlier.table_bytes,
            kafka_bytes: self.kafka_bytes - earlier.kafka_bytes,
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

/// All processes of the machine, as they were at one moment.
struct Processes {
    by_pid: BTreeMap<u32, Process>,
}

struct Process {
    parent: u32,
    /// Its own time, and that of children that have ended.
    own_ticks: f64,
    children_ticks: f64,
    memory_bytes: u64,
}

impl Processes {
    fn look() -> Result<Processes> {
        let mut by_pid = BTreeMap::new();
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            // One that is gone by now is of no interest.
            if let Some(process) = process(pid) {
                by_pid.insert(pid, process);
            }
        }
        Ok(Processes { by_pid })
    }

    /// Processor time and memory of a process and of all its children.
    fn family(&self, pid: u32) -> (f64, u64) {
        let Some(head) = self.by_pid.get(&pid) else { return (0.0, 0) };
        let children = self.by_pid.values().filter(|process| process.parent == pid);
        let (mut ticks, mut memory) = (head.own_ticks + head.children_ticks, head.memory_bytes);
        for child in children {
            ticks += child.own_ticks;
            memory += child.memory_bytes;
        }
        (ticks * TICK_MICROS, memory)
    }
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may hold anything, spaces and brackets too.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_whitespace().collect();
    let ticks = |nth: usize| fields.get(nth).and_then(|ticks| ticks.parse::<f64>().ok());
    // What it has for itself: what backends share would count once for each.
    let rollup = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kib = |of: &str| -> Option<u64> {
        rollup
            .lines()
            .find_map(|line| line.strip_prefix(of))?
            .split_whitespace()
            .next()?
            .parse()
            .ok()
    };
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        own_ticks: ticks(11)? + ticks(12)?,
        children_ticks: ticks(13)? + ticks(14)?,
        memory_bytes: kib("RssAnon:").unwrap_or_default() * 1024,
    })
}

/// Everything sent over loopback since the machine started.
fn loopback_bytes() -> Result<f64> {
    let devices = fs::read_to_string("/proc/net/dev")?;
    let line = devices.lines().find_map(|line| line.trim_start().strip_prefix("lo:"));
    let received = line.and_then(|line| line.split_whitespace().next()?.parse().ok());
    received.context("/proc/net/dev does not show the loopback device")
}

/// What the files of a directory hold.
fn bytes_in(directory: &Path) -> f64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0.0 };
    let bytes = |entry: fs::DirEntry| match entry.metadata() {
        Ok(found) if found.is_dir() => bytes_in(&entry.path()),
        // Kafka's index files are as long as they may become; only what is written counts.
        Ok(found) if entry.path().extension().is_some_and(|kind| kind == "log") => {
            found.len() as f64
        }
        _ => 0.0,
    };
    entries.flatten().map(bytes).sum()
}

/// Processes that want to run, averaged over a minute.
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_whitespace().next().and_then(|load| load.parse().ok()).unwrap_or_default()
}
