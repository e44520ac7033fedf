//! What two statements cost, whatever a batch is about, by its size: publication to the outbox, which
//! every batch that says something runs with its rows, and admission to the inbox, which is a statement of
//! its own only while repeats are expected. On a real Postgres, without the commit around them,
//! whose price is the disk's.
//!
//! The relay's look and the idempotency keys are left out: they are not reachable from here, and
//! are not to become so for a benchmark's sake.

use std::time::{Duration, Instant};

use chassis::event::{Outgoing, Retention, Topic};
use chassis::outbox::{self, Envelope};
use chassis::{db, inbox, schema, testing};
use chrono::Utc;
use criterion::{BenchmarkId, Criterion, Throughput};
use sqlx::{PgPool, PgTransaction};
use tokio::runtime::Runtime;
use uuid::Uuid;

const BATCHES: [usize; 4] = [1, 10, 100, 1_000];

static COUNTED: Topic =
    Topic::new("tills.counted", "till", &[], 1, Retention::Days(1), r#""long""#);

/// An event as the inbox knows it: its id and its topic.
type Heard = (Uuid, &'static str);

/// As long as the body of a small event.
const BODY: [u8; 90] = [0; 90];

fn main() -> anyhow::Result<()> {
    let mut criterion = Criterion::default().configure_from_args();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let db = runtime.block_on(database())?;

    measure(&mut criterion, &runtime, &db, "outbox", envelopes, publish);
    measure(&mut criterion, &runtime, &db, "inbox, new", unheard, admit);
    let heard = unheard(1_000);
    runtime.block_on(async {
        let mut tx = db::begin(&db).await?;
        admit(&mut tx, heard.clone()).await?;
        tx.commit().await
    })?;
    let again = |rows| heard[..rows].to_vec();
    measure(&mut criterion, &runtime, &db, "inbox, repeats", again, admit);
    criterion.final_summary();
    Ok(())
}

/// As a service has it: migrated by its owner, used by the role that serves.
async fn database() -> anyhow::Result<PgPool> {
    let (owner, server) = testing::fresh_database().await;
    let config = testing::config(owner, server);
    let migrations = sqlx::migrate!("../../services/stock/migrations");
    schema::migrate("till", &config, migrations).await?;
    schema::connect("till", &config)
}

fn envelopes(rows: usize) -> Vec<Envelope> {
    let envelope = |event_id: Uuid| Envelope {
        event: Outgoing { topic: &COUNTED, key: event_id.to_string(), body: BODY.to_vec() },
        event_id,
        traceparent: Some("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".to_string()),
        cause: Some(event_id),
        occurred_at: Utc::now(),
    };
    (0..rows).map(|_| envelope(Uuid::now_v7())).collect()
}

fn unheard(rows: usize) -> Vec<Heard> {
    (0..rows).map(|_| (Uuid::now_v7(), COUNTED.name)).collect()
}

async fn publish(tx: &mut PgTransaction<'static>, envelopes: Vec<Envelope>) -> sqlx::Result<()> {
    let mut writes = testing::writes(tx);
    outbox::publish(&mut writes, &envelopes);
    writes.run().await
}

async fn admit(tx: &mut PgTransaction<'static>, events: Vec<Heard>) -> sqlx::Result<()> {
    inbox::admit(tx, &events, 1).await.map(drop)
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
    for rows in BATCHES {
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
