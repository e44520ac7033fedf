//! How far each partition was handled, in the service's database.
//!
//! Promise: no record is skipped, even if the group's committed offset in Kafka is too high. Any program that joins the
//! group, or resets its offsets, moves that offset over records that were never handled. A position above a record that
//! was not handled breaks the promise. A position may lag behind, because the inbox absorbs what is read again.

use std::time::Duration;

use sqlx::PgPool;

use crate::consumer::by_partition::{OffsetsByPartition, Position};
use crate::db;

/// Timeout of a query. The reader waits for it and does not poll meanwhile.
pub(super) const QUERY_TIMEOUT: Duration = Duration::from_secs(2);

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
pub(super) async fn raise(
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
