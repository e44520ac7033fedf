//! A trial: a load on a stack of its own with one disturbance, and the checks afterwards. It is
//! short, and its disturbance always has its effect.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use events::orders;
use launcher::Stack;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::sleep;

use crate::checker::change_log;
use crate::checker::exits;
use crate::checker::findings::Findings;
use crate::checker::relay_leadership::{self, RelayLeadership};
use crate::checker::run;
use crate::client::http_client::Client;
use crate::scenarios::redelivery;
use crate::stack_description::{SERVICES, stack_description};
use crate::workload::load;
use crate::workload::options::Load;
use crate::workload::resource_usage::ResourceUsage;
use crate::workload::seed;

/// A longer trial hangs.
const TRIAL_TIMEOUT: Duration = Duration::from_secs(300);

/// How long the stack may take to become quiescent after the disturbance: first the Kafka session
/// of a killed component must expire.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);
const QUIESCENCE_TIMEOUT: Duration = Duration::from_secs(15);

/// How long a table is locked: much longer than a service waits for a lock, so that a batch is
/// bisected down to one event.
const TABLE_LOCK_DURATION: Duration = Duration::from_secs(10);

/// A fifth of the commits that write to the outbox take 30 ms longer.
const SLOW_COMMITS: &str = "
    create schema disturbance;
    create function disturbance.delay_commit() returns trigger language plpgsql
    as $$ begin perform pg_sleep(0.03); return null; end $$;
    create constraint trigger delay_commit after insert on chassis.outbox
    deferrable initially deferred for each row
    when (random() < 0.2) execute function disturbance.delay_commit();
    grant usage on schema disturbance to public";

/// A trial with fewer confirmed orders proves nothing.
const CONFIRMED_MIN: u64 = 100;

/// The disturbance of a trial.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Disturbance {
    /// No disturbance.
    Nothing,
    /// A service is away, and the offsets of its group are deleted meanwhile.
    OffsetsLost(&'static str),
    /// A service receives most cancellations before the orders.
    CancellationsFirst(&'static str),
    /// A service's database is killed, then the service, with records that it has read and not
    /// handled.
    DatabaseThenService(&'static str),
    /// Kafka is killed, then a service, with records that it has sent and that are not
    /// acknowledged.
    KafkaThenService(&'static str),
    /// A service's database is killed, and restarted.
    DatabaseKilled(&'static str),
    /// A table can be read but not written, as while an index is created.
    TableLocked(&'static str, &'static str),
    /// Some commits of a service are slow, while others overtake them.
    SlowCommits(&'static str),
}

/// A load with a disturbance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MutantTrial {
    pub disturbance: Disturbance,
    /// The number of instances of each service.
    pub instances: u16,
}

/// The result of a trial.
#[derive(Debug)]
pub struct TrialResult {
    pub confirmed: u64,
    pub findings: Findings,
    /// The number of changes in the databases' change logs.
    pub changes: u64,
}

/// The programs to test instead of our own.
#[derive(Clone, Copy, Debug)]
pub struct TestedPrograms<'a> {
    pub directory: &'a Path,
    /// The only service that runs them; `None`: all services.
    pub service: Option<&'static str>,
}

impl Disturbance {
    /// The description for the report.
    pub fn describe(self) -> String {
        match self {
            Disturbance::Nothing => "a load, no disturbance".to_string(),
            Disturbance::OffsetsLost(service) => format!("{service} away, its offsets lost"),
            Disturbance::CancellationsFirst(service) => {
                format!("cancellations reach {service} before orders")
            }
            Disturbance::DatabaseThenService(service) => {
                format!("{service}-db killed, then {service}")
            }
            Disturbance::KafkaThenService(service) => format!("kafka killed, then {service}"),
            Disturbance::DatabaseKilled(service) => format!("{service}-db killed"),
            Disturbance::TableLocked(service, table) => {
                format!("table {table} of {service} cannot be written")
            }
            Disturbance::SlowCommits(service) => format!("slow commits at {service}"),
        }
    }

    fn load(self) -> Load {
        let lasting = Duration::from_secs(10);
        let load =
            Load { rate: 50, duration: lasting, drain_timeout: DRAIN_TIMEOUT, ..Load::default() };
        match self {
            Disturbance::OffsetsLost(_) | Disturbance::CancellationsFirst(_) => {
                Load { cancelled_percent: 40, ..load }
            }
            Disturbance::TableLocked(_, table) => {
                let repeated_percent = if table == "chassis.idempotency_keys" { 40 } else { 5 };
                Load {
                    duration: TABLE_LOCK_DURATION * 2,
                    duplicated_percent: repeated_percent,
                    ..load
                }
            }
            Disturbance::Nothing => Load { rate: 100, ..load },
            _ => load,
        }
    }

    /// Disturbs the load, from its beginning on.
    async fn disturb(self, stack: &Stack, client: &Client) -> Result<()> {
        let db = |service: &str| format!("{service}-db");
        let (soon, a_while) = (Duration::from_secs(2), Duration::from_secs(4));
        match self {
            Disturbance::Nothing => {}
            Disturbance::OffsetsLost(service) => {
                // Not killed: its group has to be empty.
                stack.stop(service).await?;
                sleep(a_while).await;
                redelivery::delete_offsets(client, service).await?;
                stack.start(service).await?;
            }
            Disturbance::CancellationsFirst(service) => {
                stack.stop(service).await?;
                sleep(a_while).await;
                let held = redelivery::withhold(client, service, &orders::CREATED).await?;
                stack.start(service).await?;
                sleep(a_while).await;
                stack.stop(service).await?;
                redelivery::release(client, held).await?;
                stack.start(service).await?;
            }
            Disturbance::DatabaseThenService(service) => {
                sleep(soon).await;
                // So that there are many records to read when it continues.
                stack.pause(service).await?;
                sleep(soon).await;
                stack.kill(&db(service)).await?;
                stack.resume(service).await?;
                sleep(a_while).await;
                stack.kill(service).await?;
                stack.start(&db(service)).await?;
                stack.start(service).await?;
            }
            Disturbance::KafkaThenService(service) => {
                sleep(soon).await;
                stack.kill("kafka").await?;
                sleep(a_while).await;
                stack.kill(service).await?;
                stack.start("kafka").await?;
                stack.start(service).await?;
            }
            Disturbance::DatabaseKilled(service) => {
                sleep(soon).await;
                stack.kill(&db(service)).await?;
                sleep(a_while).await;
                stack.start(&db(service)).await?;
            }
            Disturbance::TableLocked(service, table) => {
                sleep(soon).await;
                let mut session = connect(client, service).await?;
                let close = format!("begin; lock table {table} in share mode");
                sqlx::raw_sql(AssertSqlSafe(close)).execute(&mut session).await?;
                sleep(TABLE_LOCK_DURATION).await;
                sqlx::raw_sql("rollback").execute(&mut session).await?;
            }
            Disturbance::SlowCommits(service) => {
                let mut session = connect(client, service).await?;
                sqlx::raw_sql(SLOW_COMMITS).execute(&mut session).await?;
            }
        }
        Ok(())
    }
}

async fn connect(client: &Client, service: &str) -> Result<PgConnection> {
    Ok(PgConnection::connect(&client.addresses.databases[service]).await?)
}

impl MutantTrial {
    /// The description for the report.
    pub fn describe(&self) -> String {
        let of =
            if self.instances > 1 { format!(", {} of each", self.instances) } else { "".into() };
        format!("{}{of}", self.disturbance.describe())
    }

    /// Runs the trial with these programs, or with our own.
    pub async fn run(&self, programs: Option<TestedPrograms<'_>>) -> Result<TrialResult> {
        let stack = Stack::ephemeral(&stack_description())?;
        stack.set_instances(self.instances).await?;
        if let Some(TestedPrograms { directory, service: only }) = programs {
            for service in SERVICES.into_iter().filter(|of| only.is_none_or(|only| only == *of)) {
                for name in stack.instances_of(service)? {
                    stack.set_programs(&name, directory)?;
                }
            }
        }
        let proof = tokio::time::timeout(TRIAL_TIMEOUT, self.run_on(&stack)).await;
        let proof = proof.context("it took too long").flatten();
        stack.clean().await?;
        proof
    }

    async fn run_on(&self, stack: &Stack) -> Result<TrialResult> {
        stack.up().await?;
        let client = Client::for_stack(stack)?;
        seed::run(&client).await?;
        change_log::install(&client).await?;
        let before = ResourceUsage::measure(stack, &client).await?;

        let (load, mut leaders) = (self.disturbance.load(), RelayLeadership::default());
        let (summary, ()) = tokio::select! {
            loaded = load::run(&client, &load, self.disturbance.disturb(stack, &client)) => loaded?,
            broken = leaders.watch(stack, &client) => {
                return Err(broken.err().context("the watch ended")?);
            }
        };
        let mut findings = summary.findings.clone();
        leaders.check(&mut findings);
        // Any dead letter of a trial is a finding.
        let options = run::CheckOptions { timeout: QUIESCENCE_TIMEOUT };
        let verdict = run::run_expecting(&client, &options, &HashSet::new()).await?;
        findings.merge(&verdict.findings);
        if self.disturbance == Disturbance::Nothing {
            relay_leadership::check_no_duplicates(&verdict.tally, &mut findings);
        }
        exits::check_unexpected_exits(&stack.exits().await?, 0, &mut findings);
        ResourceUsage::measure(stack, &client).await?.check(&before, &mut findings);
        let changes = verdict.changes.unwrap_or_default();
        Ok(TrialResult { confirmed: summary.confirmed, findings, changes })
    }
}

impl TrialResult {
    /// Programs without a mutant: nothing may be found, and the load must have been sufficient.
    pub fn ensure_holds(&self) -> Result<()> {
        ensure!(self.findings.is_empty(), "{}", self.findings.lines().join("\n"));
        ensure!(self.confirmed >= CONFIRMED_MIN, "only {} orders were confirmed", self.confirmed);
        ensure!(self.changes > 0, "the change logs of the databases are empty");
        Ok(())
    }
}
