//! The cost of four statements, by the size of the batch: the inserts into the outbox, into the inbox and, while a
//! million timers are pending, into the schedule, which a batch of events runs together with its rows; and the query of
//! the inbox, which runs only while duplicates are expected. They run on a real Postgres, without the commit around
//! them: its cost is that of the disk.
//!
//! The relay's query and the idempotency keys are left out: they are not reachable from here, and must not become
//! public for a benchmark.

use std::time::{Duration, Instant};

use chrono::{TimeDelta, Utc};
use criterion::{BenchmarkId, Criterion, Throughput};
use host::db::{migrate, pool};
use host::testing;
use messaging::event::{Outgoing, SetTimer, Timer, Topic};
use messaging::outbox::{self, Envelope};
use messaging::unit_of_work::write_batch::WriteBatch;
use messaging::{db, inbox, scheduled};
use serde::{Deserialize, Serialize};
use sqlx::{PgPool, PgTransaction};
use tokio::runtime::Runtime;
use uuid::Uuid;

const BATCH_SIZES: [usize; 4] = [1, 10, 100, 1_000];

static COUNTED: Topic = Topic::new("tills.counted", "till", r#""long""#);

/// An event in the inbox: its id and its topic.
type InboxEvent = (Uuid, &'static str);

/// As long as the body of a small event.
const BODY: [u8; 90] = [0; 90];

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let db = runtime.block_on(database())?;

    measure(&mut criterion, &runtime, &db, "outbox", envelopes, publish);
    measure(&mut criterion, &runtime, &db, "inbox, new", new_events, insert);
    let inserted = new_events(1_000);
    runtime.block_on(async {
        let mut tx = db::begin(&db).await?;
        insert(&mut tx, inserted.clone()).await?;
        tx.commit().await
    })?;
    let duplicates = |rows| inserted[..rows].to_vec();
    measure(&mut criterion, &runtime, &db, "inbox, duplicates", duplicates, query);
    runtime.block_on(sqlx::query(A_MILLION_TIMERS).execute(&db))?;
    measure(&mut criterion, &runtime, &db, "timers", timers, set);
    criterion.final_summary();
    Ok(())
}

/// As a service has it: migrated by its owner, used by the role that serves.
async fn database() -> anyhow::Result<PgPool> {
    let (owner, server) = testing::fresh_database().await;
    let config = testing::config(owner, server);
    migrate::migrate("till", &config, sqlx::migrate::Migrator::DEFAULT).await?;
    pool::connect("till", &config)
}

fn envelopes(rows: usize) -> Vec<Envelope> {
    let envelope = |event_id: Uuid| Envelope {
        event: Outgoing { topic: &COUNTED, key: event_id.to_string(), body: BODY.to_vec() },
        event_id,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_string()),
        tracestate: None,
        causation_id: Some(event_id),
        occurred_at: Utc::now(),
    };
    (0..rows).map(|_| envelope(Uuid::now_v7())).collect()
}

fn new_events(rows: usize) -> Vec<InboxEvent> {
    (0..rows).map(|_| (Uuid::now_v7(), COUNTED.name)).collect()
}

#[derive(Serialize, Deserialize)]
struct Reminder {
    order_id: Uuid,
}

impl Timer for Reminder {
    const NAME: &'static str = "timer/reminder";
    fn key(&self) -> String {
        self.order_id.to_string()
    }
}

const A_MILLION_TIMERS: &str = "
    insert into chassis.scheduled (source, key, event_id, body, due_at, tick, traceparent)
    select 'timer/reminder', gen_random_uuid(), gen_random_uuid(), '{}', now() + n * interval '1 second', 0,
           '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01'
    from generate_series(1, 1000000) as n";

fn timers(rows: usize) -> Vec<SetTimer> {
    let due_at = Utc::now() + TimeDelta::days(1);
    (0..rows).map(|_| Reminder { order_id: Uuid::now_v7() }.at(due_at)).collect()
}

async fn set(tx: &mut PgTransaction<'static>, timers: Vec<SetTimer>) -> sqlx::Result<()> {
    scheduled::set(tx, timers).await
}

async fn publish(tx: &mut PgTransaction<'static>, envelopes: Vec<Envelope>) -> sqlx::Result<()> {
    let mut writes = WriteBatch::new(tx);
    outbox::insert(&mut writes, &envelopes);
    writes.execute().await
}

async fn insert(tx: &mut PgTransaction<'static>, events: Vec<InboxEvent>) -> sqlx::Result<()> {
    let mut writes = WriteBatch::new(tx);
    inbox::insert(&mut writes, events, 1);
    writes.execute().await
}

async fn query(tx: &mut PgTransaction<'static>, events: Vec<InboxEvent>) -> sqlx::Result<()> {
    let event_ids = events.into_iter().map(|(event_id, _)| event_id).collect();
    inbox::topics_of(tx, event_ids).await.map(drop)
}

/// Runs a statement on batches of each size, each in a transaction of its own that is rolled back.
fn measure<B>(
    criterion: &mut Criterion,
    runtime: &Runtime,
    db: &PgPool,
    name: &str,
    batch: impl Fn(usize) -> B,
    statement: impl AsyncFn(&mut PgTransaction<'static>, B) -> sqlx::Result<()>,
) {
    let timed = async |rows| -> sqlx::Result<Duration> {
        let mut tx = db::begin(db).await?;
        let batch = batch(rows);
        let began = Instant::now();
        statement(&mut tx, batch).await?;
        let took = began.elapsed();
        tx.rollback().await?;
        Ok(took)
    };
    let mut group = criterion.benchmark_group(name);
    for rows in BATCH_SIZES {
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_function(BenchmarkId::from_parameter(rows), |b| {
            b.iter_custom(|times| {
                runtime.block_on(async {
                    let mut took = Duration::ZERO;
                    for _ in 0..times {
                        took += timed(rows).await.expect("the statement runs");
                    }
                    took
                })
            })
        });
    }
    group.finish();
}
