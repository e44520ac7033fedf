//! Hostile clients beside regular ones of the same service: headers that never end, bodies above
//! the limit, and more connections than the service serves at a time.
//!
//! Each hostile connection must be closed or answered within a bound, and the service's memory must
//! stay within a bound. As long as connections are free, regular clients must not notice. If all
//! connections are taken, a new client waits for some seconds at most, as the hostile ones are closed.

mod attacks;
mod target;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::join_all;
use launcher::{Stack, eventually};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::checker::run::CheckOptions;
use crate::client::http_client::Client;
use crate::client::outcome::Outcome;
use crate::console::print_line;
use crate::scenarios::hostile::attacks::{AttackKind, AttackReport};
use crate::scenarios::hostile::target::Target;
use crate::scenarios::runner::{Report, Run, prove};
use crate::stack_description::SERVICES;
use crate::workload::seed;

/// Connections that a service serves at a time; see the limits of the chassis.
const SERVER_CONNECTIONS_MAX: usize = 1024;

/// How long a hostile connection may stay open: 10 s for a header, 15 s for a request, and 15 s
/// more for an unread response.
const HOSTILE_TIMEOUT: Duration = Duration::from_secs(35);

/// The interval of regular requests, and how long one may take beside hostile clients: 500 clients
/// that pipeline requests keep both cores of a small machine busy for seconds.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);

const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// The same beside more hostile clients than there are connections: a probe of Kubernetes waits 3 s.
const CROWDED_PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// The interval between two connects. If all came at once, a busy machine would drop those beyond
/// the listener's backlog before the service could accept any.
const CONNECT_INTERVAL: Duration = Duration::from_millis(1);

/// The smallest share of hostile clients that must have connected, in percent.
const CONNECTED_PERCENT_MIN: usize = 95;

/// The largest growth of a service's memory under attack.
const MEMORY_GROWTH_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Options of a run.
#[derive(Clone, Debug, clap::Args)]
pub struct HostileOptions {
    /// Number of hostile clients of each kind, so few that regular clients must not notice
    #[arg(long, default_value_t = 500)]
    pub clients: usize,
    /// Number of clients that occupy all connections. The rest wait in the listener's backlog, which is as large; the
    /// system silently drops any further connections
    #[arg(long, default_value_t = 1_900)]
    pub silent_clients: usize,
}

/// Runs all attacks, and returns whether all of it held. The stack is stopped again if it was not
/// up before.
pub async fn run(stack: &Stack, options: &HostileOptions) -> Result<bool> {
    prove(stack, "hostile clients", async |run| attack_all(run, options).await).await
}

/// Runs every attack against every service that takes commands, one after the other.
async fn attack_all(run: &mut Run<'_>, options: &HostileOptions) -> Result<()> {
    ensure!(
        options.clients < SERVER_CONNECTIONS_MAX,
        "{SERVER_CONNECTIONS_MAX} connections are served at a time"
    );
    let before = pids(run.stack).await?;
    for service in SERVICES {
        run.step(&format!("Against {service}"));
        if send_command(&run.client, service).await?.is_none() {
            ensure_takes_no_command(&run.client, service).await?;
            print_line("  it takes no commands, so no client waits for it");
            continue;
        }
        for kind in AttackKind::ALL {
            let count = if kind.is_silent() { options.silent_clients } else { options.clients };
            attack(run.stack, &run.client, service, kind, count, &mut run.report).await?;
        }
    }
    run.check(&CheckOptions::default(), None).await?;
    ensure!(pids(run.stack).await? == before, "a service exited under attack");
    Ok(())
}

async fn ensure_takes_no_command(client: &Client, service: &str) -> Result<()> {
    let url = format!("{}/openapi.json", client.addresses.apis[service]);
    let api: Value = client.get_url(&url).await?;
    let paths = api["paths"].as_object().context("an API has paths")?;
    let commands = paths.values().any(|path| ["post", "put"].iter().any(|it| !path[it].is_null()));
    ensure!(!commands, "seed::any_command knows no command of {service}");
    Ok(())
}

/// Runs one attack by this number of clients, beside regular requests of the same service.
async fn attack(
    stack: &Stack,
    client: &Client,
    service: &str,
    kind: AttackKind,
    count: usize,
    report: &mut Report,
) -> Result<()> {
    let target = Target::new(stack, client, service)?;
    // Clients above the limit are served after the first ones are closed.
    let rounds = u32::try_from(count.div_ceil(SERVER_CONNECTIONS_MAX))?;
    let before = stack.memory_bytes(service)?;
    let is_crowded = count >= SERVER_CONNECTIONS_MAX;
    let timeout = if is_crowded { CROWDED_PROBE_TIMEOUT } else { PROBE_TIMEOUT };
    let mut probes = ProbeStatistics { memory_peak: before, timeout, ..ProbeStatistics::default() };
    let hostile = (0..).take(count).map(async |nth| {
        sleep(CONNECT_INTERVAL * nth).await;
        tokio::time::timeout(HOSTILE_TIMEOUT * rounds, kind.run(&target)).await
    });
    let is_over = AtomicBool::new(false);
    let attacking = async {
        let reports = join_all(hostile).await;
        is_over.store(true, Ordering::Relaxed);
        Ok(reports)
    };
    // A regular request in progress is awaited, however long it takes: the last is often the
    // slowest.
    let probing = async {
        while !is_over.load(Ordering::Relaxed) {
            probes.probe(stack, client, service).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    let (reports, ()) = tokio::try_join!(attacking, probing)?;
    let still_open = reports.iter().filter(|report| report.is_err()).count();
    let ended: Vec<AttackReport> = reports.into_iter().flatten().collect();
    let connected = still_open + ended.iter().filter(|report| report.connected).count();
    let slowest = ended.iter().map(|report| report.duration).max().unwrap_or_default();
    // New clients are served again.
    let served = async || send_command(client, service).await;
    eventually("a command to be accepted", PROBE_TIMEOUT, served).await?;
    let growth = probes.memory_peak.saturating_sub(before);
    print_line(&format!(
        "  {:<36} closed within {:>4.1} s; {} regular requests, {} refused or late, {:.2} s at most; \
         memory grew by {:.1} MB",
        format!("{count} {}", kind.description()),
        slowest.as_secs_f64(),
        probes.sent,
        probes.failed,
        probes.slowest.as_secs_f64(),
        growth as f64 / 1e6
    ));
    let what = format!("{service}, {count} {}", kind.description());
    report.require(still_open == 0, || format!("{what}: {still_open} connections stayed open"));
    if connected * 100 < count * CONNECTED_PERCENT_MIN {
        report.inconclusive.push(format!("{what}: only {connected} were connected"));
    }
    let ProbeStatistics { sent, failed, slowest, .. } = probes;
    report.require(failed == 0 && sent > 0, || {
        let slowest = slowest.as_secs_f64();
        format!("{what}: {failed} of {sent} regular requests failed, {slowest:.1} s at most")
    });
    report.require(growth <= MEMORY_GROWTH_BYTES_MAX, || {
        format!("{what}: memory grew by {} MB", growth / 1_000_000)
    });
    Ok(())
}

/// The regular requests during an attack.
#[derive(Default)]
struct ProbeStatistics {
    sent: u32,
    /// Refused, or answered too late.
    failed: u32,
    slowest: Duration,
    /// How long one may take.
    timeout: Duration,
    /// The largest memory of the service.
    memory_peak: u64,
}

impl ProbeStatistics {
    async fn probe(&mut self, stack: &Stack, client: &Client, service: &str) -> Result<()> {
        sleep(PROBE_INTERVAL).await;
        self.memory_peak = self.memory_peak.max(stack.memory_bytes(service)?);
        let began = Instant::now();
        let taken = send_command(client, service).await;
        self.sent += 1;
        self.failed += u32::from(taken.is_err() || began.elapsed() > self.timeout);
        self.slowest = self.slowest.max(began.elapsed());
        Ok(())
    }
}

/// Sends a command that the service stores; `None` if it takes none.
async fn send_command(client: &Client, service: &str) -> Result<Option<()>> {
    let Some(outcome) = seed::send_any_command(client, service).await else { return Ok(None) };
    ensure!(matches!(outcome, Outcome::Ok(_)), "{outcome:?}");
    Ok(Some(()))
}

async fn pids(stack: &Stack) -> Result<Vec<Option<u32>>> {
    Ok(stack.status().await?.into_iter().map(|member| member.pid).collect())
}
