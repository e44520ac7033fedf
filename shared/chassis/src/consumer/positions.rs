//! How far each partition was handled, in the service's database.
//!
//! Promise: no record is skipped, whatever the group's committed offset in Kafka says. Any program that joins the
//! group, or resets its offsets, moves that offset over records that were never handled. A position above a record
//! that was not handled breaks the promise. A position may lag behind, because the inbox absorbs what is read again.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{Consumer as _, StreamConsumer};
use sqlx::PgPool;
use tokio::task::JoinHandle;

use crate::consumer::offsets::OffsetsByPartition;
use crate::consumer::pause::PAUSE_POLL_INTERVAL;
use crate::consumer::rebalance::GroupContext;
use crate::consumer::rewind;
use crate::db;

/// How often positions are written, while they rise.
pub(super) const SAVE_INTERVAL: Duration = Duration::from_secs(1);

/// Timeout of a query. The reader waits for it and does not poll meanwhile.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

/// The next offset of a partition that is to be written.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Position {
    pub topic: String,
    pub partition: i32,
    pub next: i64,
}

/// The positions in a cluster.
pub(super) async fn load(db: &PgPool, cluster: &str) -> sqlx::Result<OffsetsByPartition> {
    let all = sqlx::query_as(
        "select topic, partition, next_offset from chassis.consumer_positions where cluster = $1",
    );
    let all = db::with_timeout(QUERY_TIMEOUT, all.bind(cluster).fetch_all(db)).await?;
    let all = all.into_iter();
    Ok(all.map(|(topic, partition, next): (String, i32, i64)| ((topic, partition), next)).collect())
}

/// Sets positions, also to lower offsets: what was handled before is of no meaning for these partitions any more. No
/// rewind up to `rewind_id` applies to them.
pub(super) async fn set(
    db: &PgPool,
    cluster: &str,
    positions: &[Position],
    rewind_id: i64,
) -> sqlx::Result<()> {
    let statement = "
        insert into chassis.consumer_positions (cluster, topic, partition, next_offset, rewind_id)
        select $1, *, $5 from unnest($2::text[], $3::int[], $4::bigint[])
        on conflict (cluster, topic, partition)
        do update set next_offset = excluded.next_offset, rewind_id = excluded.rewind_id";
    write(db, statement, cluster, positions, rewind_id).await
}

/// Raises positions. One that is higher already stays as it is, and so does one that was rewound since: another
/// instance has had the partition.
async fn raise(
    db: &PgPool,
    cluster: &str,
    positions: &[Position],
    rewind_id: i64,
) -> sqlx::Result<()> {
    let statement = "
        update chassis.consumer_positions as known set next_offset = risen.next_offset
        from unnest($2::text[], $3::int[], $4::bigint[]) as risen (topic, partition, next_offset)
        where known.cluster = $1 and known.topic = risen.topic and known.partition = risen.partition
          and known.next_offset < risen.next_offset and known.rewind_id <= $5";
    write(db, statement, cluster, positions, rewind_id).await
}

async fn write(
    db: &PgPool,
    statement: &'static str,
    cluster: &str,
    positions: &[Position],
    rewind_id: i64,
) -> sqlx::Result<()> {
    if positions.is_empty() {
        return Ok(());
    }
    // Sorted, so that two instances wait for each other in one direction only.
    let mut sorted = Vec::from_iter(positions);
    sorted.sort_unstable();
    let written = sqlx::query(statement)
        .bind(cluster)
        .bind(sorted.iter().map(|position| &*position.topic).collect::<Vec<_>>())
        .bind(sorted.iter().map(|position| position.partition).collect::<Vec<_>>())
        .bind(sorted.iter().map(|position| position.next).collect::<Vec<_>>())
        .bind(rewind_id)
        .execute(db);
    db::with_timeout(QUERY_TIMEOUT, written).await.map(drop)
}

/// Writes the positions of one client, beside its reading, and looks for rewinds as often as for a pause.
pub(super) struct PositionWriter {
    client: Arc<StreamConsumer<GroupContext>>,
    db: PgPool,
    written_at: Instant,
    rewinds_read_at: Instant,
    writing: Option<JoinHandle<()>>,
}

impl PositionWriter {
    pub fn new(client: Arc<StreamConsumer<GroupContext>>, db: PgPool) -> PositionWriter {
        let now = Instant::now();
        PositionWriter { client, db, written_at: now, rewinds_read_at: now, writing: None }
    }

    /// Begins to write the positions that have risen: once in a while, and at once after partitions were revoked, since
    /// another instance is about to read them.
    pub fn write_if_due(&mut self) {
        let context = self.client.context();
        let is_due = self.written_at.elapsed() >= SAVE_INTERVAL || context.take_revoked();
        if is_due && self.writing.as_ref().is_none_or(JoinHandle::is_finished) {
            self.written_at = Instant::now();
            let reads_rewinds = self.rewinds_read_at.elapsed() >= PAUSE_POLL_INTERVAL;
            if reads_rewinds {
                self.rewinds_read_at = self.written_at;
            }
            let (client, db) = (self.client.clone(), self.db.clone());
            self.writing = Some(tokio::spawn(async move {
                save(&db, client.context()).await;
                if reads_rewinds && let Ok(last) = rewind::last_id(&db).await {
                    client.context().request_rewind(last);
                }
            }));
        }
    }
}

/// Writes the positions of a client that have risen. If the database is away, they are written next time.
pub(super) async fn save(db: &PgPool, context: &GroupContext) {
    let Some(cluster) = context.known_cluster_id() else { return };
    let risen = context.offsets.unsaved();
    if raise(db, cluster, &risen, context.known_rewind()).await.is_ok() {
        context.offsets.record_saved(&risen);
    }
}
