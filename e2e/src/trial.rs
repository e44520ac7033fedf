//! A trial: a load on a stack of its own, one trouble meanwhile, and everything that must hold
//! afterwards. Short, and sure to bring about what it is for.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use events::orders;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::sleep;

use crate::client::Client;
use crate::findings::Findings;
use crate::footprint::Footprint;
use crate::leaders::{self, Leaders};
use crate::load::{self, Load};
use crate::topology::SERVICES;
use crate::{Stack, ends, replays, seed, verify, witness};

/// A trial that takes longer than this hangs.
const WITHIN: Duration = Duration::from_secs(300);

/// How long everything may take to come to rest, once the trouble is over: a killed member's session
/// with Kafka first has to run out.
const DRAINED_WITHIN: Duration = Duration::from_secs(30);
const REST_WITHIN: Duration = Duration::from_secs(15);

/// A table is closed for much longer than a service waits for a lock: time enough to try a batch in
/// halves, down to one event.
const CLOSED_FOR: Duration = Duration::from_secs(10);

/// Fewer confirmed orders prove nothing.
const CONFIRMED_MIN: u64 = 100;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// Nothing does.
    Nothing,
    /// A service is away from the first order on, and most customers cancel.
    StartedLate(&'static str),
    /// A service hears of what most customers cancel before it hears that they ordered it.
    Overtaken(&'static str),
    /// A service's database is killed, then the service, with what it had read and not handled.
    DatabaseThenService(&'static str),
    /// Kafka is killed, then a service, with what it had sent and had no word of.
    KafkaThenService(&'static str),
    /// A service's database is killed, and comes back.
    DatabaseAway(&'static str),
    /// A table can be read and not be written, as while somebody makes an index.
    Closed(&'static str, &'static str),
    /// Some commits of a service take long, while others overtake them.
    LongTails(&'static str),
}

/// A load with a trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trial {
    pub trouble: Trouble,
    /// Of each service.
    pub instances: u16,
}

/// What came of it.
#[derive(Debug)]
pub struct Proof {
    pub confirmed: u64,
    pub findings: Findings,
    /// That the databases wrote down of themselves.
    pub changes: u64,
}

/// Programs to be tried in place of our own.
#[derive(Clone, Copy, Debug)]
pub struct Programs<'a> {
    pub directory: &'a Path,
    /// The one service that they are taken for; `None`: all.
    pub service: Option<&'static str>,
}

impl Trouble {
    /// For people.
    pub fn describe(self) -> String {
        match self {
            Trouble::Nothing => "a load, nothing broken".to_string(),
            Trouble::StartedLate(service) => format!("{service} away from the start, cancels"),
            Trouble::Overtaken(service) => format!("cancellations come to {service} before orders"),
            Trouble::DatabaseThenService(service) => format!("{service}-db killed, then {service}"),
            Trouble::KafkaThenService(service) => format!("kafka killed, then {service}"),
            Trouble::DatabaseAway(service) => format!("{service}-db killed"),
            Trouble::Closed(service, table) => format!("{table} of {service} not writable"),
            Trouble::LongTails(service) => format!("slow commits at {service}"),
        }
    }

    fn load(self) -> Load {
        let lasting = Duration::from_secs(10);
        let load = Load { rate: 50, lasting, drained_within: DRAINED_WITHIN, ..Load::default() };
        match self {
            Trouble::StartedLate(_) | Trouble::Overtaken(_) => {
                Load { cancelled_percent: 40, ..load }
            }
            Trouble::Closed(_, table) => {
                let repeated_percent = if table == "idempotency_keys" { 40 } else { 5 };
                Load { lasting: CLOSED_FOR * 2, repeated_percent, ..load }
            }
            Trouble::Nothing => Load { rate: 100, ..load },
            _ => load,
        }
    }

    /// Begins with the load.
    async fn happen(self, stack: &Stack, client: &Client) -> Result<()> {
        let db = |service: &str| format!("{service}-db");
        let (soon, a_while) = (Duration::from_secs(2), Duration::from_secs(4));
        match self {
            Trouble::Nothing => {}
            Trouble::StartedLate(service) => {
                stack.kill(service).await?;
                sleep(a_while).await;
                stack.start(service).await?;
            }
            Trouble::Overtaken(service) => {
                stack.stop(service).await?;
                sleep(a_while).await;
                let held = replays::hold(client, service, &orders::CREATED).await?;
                stack.start(service).await?;
                sleep(a_while).await;
                stack.stop(service).await?;
                replays::release(client, held).await?;
                stack.start(service).await?;
            }
            Trouble::DatabaseThenService(service) => {
                sleep(soon).await;
                // So that there is much to read at once when it may go on.
                stack.pause(service).await?;
                sleep(soon).await;
                stack.kill(&db(service)).await?;
                stack.resume(service).await?;
                sleep(a_while).await;
                stack.kill(service).await?;
                stack.start(&db(service)).await?;
                stack.start(service).await?;
            }
            Trouble::KafkaThenService(service) => {
                sleep(soon).await;
                stack.kill("kafka").await?;
                sleep(a_while).await;
                stack.kill(service).await?;
                stack.start("kafka").await?;
                stack.start(service).await?;
            }
            Trouble::DatabaseAway(service) => {
                sleep(soon).await;
                stack.kill(&db(service)).await?;
                sleep(a_while).await;
                stack.start(&db(service)).await?;
            }
            Trouble::Closed(service, table) => {
                sleep(soon).await;
                let mut session = session(client, service).await?;
                let close = format!("begin; lock table {table} in share mode");
                sqlx::raw_sql(AssertSqlSafe(close)).execute(&mut session).await?;
                sleep(CLOSED_FOR).await;
                sqlx::raw_sql("rollback").execute(&mut session).await?;
            }
            Trouble::LongTails(service) => {
                let mut session = session(client, service).await?;
                sqlx::raw_sql(
                    "create schema trouble;
                     create function trouble.dawdle() returns trigger language plpgsql
                     as $$ begin perform pg_sleep(0.03); return null; end $$;
                     create constraint trigger dawdle after insert on outbox
                     deferrable initially deferred for each row
                     when (random() < 0.2) execute function trouble.dawdle();
                     grant usage on schema trouble to public",
                )
                .execute(&mut session)
                .await?;
            }
        }
        Ok(())
    }
}

async fn session(client: &Client, service: &str) -> Result<PgConnection> {
    Ok(PgConnection::connect(&client.addresses.databases[service]).await?)
}

impl Trial {
    /// For people.
    pub fn describe(&self) -> String {
        let of =
            if self.instances > 1 { format!(", {} of each", self.instances) } else { "".into() };
        format!("{}{of}", self.trouble.describe())
    }

    /// Runs it with these programs, or with our own.
    pub async fn run(&self, programs: Option<Programs<'_>>) -> Result<Proof> {
        let stack = Stack::ephemeral()?;
        stack.set_instances(self.instances).await?;
        if let Some(Programs { directory, service: only }) = programs {
            for service in SERVICES.into_iter().filter(|of| only.is_none_or(|only| only == *of)) {
                for name in stack.instances_of(service)? {
                    stack.set_programs(&name, directory)?;
                }
            }
        }
        let proof = tokio::time::timeout(WITHIN, self.on(&stack)).await;
        let proof = proof.context("it took too long").flatten();
        stack.clean().await?;
        proof
    }

    async fn on(&self, stack: &Stack) -> Result<Proof> {
        stack.up().await?;
        let client = Client::of(stack)?;
        seed::run(&client).await?;
        witness::install(&client).await?;
        let before = Footprint::of(stack, &client).await?;

        let (load, mut leaders) = (self.trouble.load(), Leaders::default());
        let (summary, ()) = tokio::select! {
            loaded = load::run(&client, &load, self.trouble.happen(stack, &client)) => loaded?,
            broken = leaders.watch(stack, &client) => {
                return Err(broken.err().context("the watch ended")?);
            }
        };
        let mut findings = summary.findings.clone();
        leaders.check(&mut findings);
        // Whatever is set aside here should not have been.
        let options = verify::Options { within: REST_WITHIN };
        let verdict = verify::knowing(&client, &options, &HashSet::new()).await?;
        findings.join(&verdict.findings);
        if self.trouble == Trouble::Nothing {
            leaders::check_undisturbed(&verdict.tally, &mut findings);
        }
        ends::check(&stack.ends().await?, 0, &mut findings);
        Footprint::of(stack, &client).await?.check(&before, &mut findings);
        let changes = verdict.changes.unwrap_or_default();
        Ok(Proof { confirmed: summary.confirmed, findings, changes })
    }
}

impl Proof {
    /// Of programs that are right: that nothing was found, and that this means something.
    pub fn holds(&self) -> Result<()> {
        ensure!(self.findings.is_empty(), "{}", self.findings.lines().join("\n"));
        ensure!(self.confirmed >= CONFIRMED_MIN, "only {} orders were confirmed", self.confirmed);
        ensure!(self.changes > 0, "the databases wrote down no change of theirs");
        Ok(())
    }
}
