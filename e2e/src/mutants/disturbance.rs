//! What disturbs the load of a trial. A trial is short, and its disturbance always has its effect.

use std::time::Duration;

use anyhow::Result;
use chassis::event::Event;
use events::orders::OrderCreated;
use launcher::Stack;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::time::sleep;

use crate::client::http_client::Client;
use crate::scenarios::redelivery;
use crate::workload::options::Load;

/// How long the stack may take to become quiescent after the disturbance: the Kafka session of a killed component
/// must expire first.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(30);

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

impl Disturbance {
    /// The load that it disturbs.
    pub fn load(self) -> Load {
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
    pub async fn disturb(self, stack: &Stack, client: &Client) -> Result<()> {
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
                let held = redelivery::withhold(client, service, OrderCreated::topic()).await?;
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
