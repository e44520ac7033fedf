//! Rewinds: an operator moves the consumer to an earlier or a later offset, on purpose. The request is a row of the
//! service's database, with its actor and its reason. Each instance applies it to the partitions that it has.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use serde::Serialize;
use sqlx::PgPool;
use utoipa::ToSchema;

use crate::consumer::by_partition::{OffsetsByPartition, TopicPartition};
use crate::consumer::lag;
use crate::consumer::offsets::CLUSTER_REQUEST_TIMEOUT;
use crate::consumer::positions::QUERY_TIMEOUT;
use crate::consumer::rebalance::GroupContext;
use crate::db;
use crate::db::operator_acts::OperatorActError;
use crate::dead_letter::storable_text;

/// Events of the inbox that are counted, at most.
const COUNT_MAX: i64 = 100_000;

/// Where a partition is read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RewindTo {
    /// The first record of this time or later.
    Time(DateTime<Utc>),
    Offset(i64),
}

/// The rewinds that are not applied yet.
pub(super) struct PendingRewinds {
    /// The last rewind of all.
    pub last_id: i64,
    pub to: HashMap<(String, i32), RewindTo>,
}

/// The number of the last rewind; 0 if there is none.
pub(super) async fn last_id(db: &PgPool) -> sqlx::Result<i64> {
    let last_id = "select coalesce(max(rewind_id), 0) from chassis.rewinds";
    db::with_timeout(QUERY_TIMEOUT, sqlx::query_scalar(last_id).fetch_one(db)).await
}

/// For each partition with a position: the last rewind that was asked for since. A partition without a position was
/// never read, so that no rewind was meant for it.
pub(super) async fn pending(db: &PgPool, cluster: &str) -> sqlx::Result<PendingRewinds> {
    let last_id = last_id(db).await?;
    type Row = (String, i32, Option<DateTime<Utc>>, Option<i64>);
    let rewinds = sqlx::query_as::<_, Row>(
        "select distinct on (known.topic, known.partition)
                known.topic, known.partition, rewind.to_time, rewind.to_offset
         from chassis.consumer_positions as known join chassis.rewinds as rewind
           on rewind.rewind_id > known.rewind_id and rewind.rewind_id <= $2
          and coalesce(rewind.topic, known.topic) = known.topic
          and coalesce(rewind.partition, known.partition) = known.partition
         where known.cluster = $1
         order by known.topic, known.partition, rewind.rewind_id desc",
    )
    .bind(cluster)
    .bind(last_id)
    .fetch_all(db);
    let rewinds = db::with_timeout(QUERY_TIMEOUT, rewinds).await?;
    let to = rewinds.into_iter().filter_map(|(topic, partition, time, offset)| {
        let to = time.map(RewindTo::Time).or(offset.map(RewindTo::Offset))?;
        Some(((topic, partition), to))
    });
    Ok(PendingRewinds { last_id, to: to.collect() })
}

/// The offsets to which these partitions are moved, none behind their ends.
pub(super) fn resolve(
    client: &StreamConsumer<GroupContext>,
    rewinds: &[(TopicPartition, RewindTo)],
) -> KafkaResult<OffsetsByPartition> {
    let (mut all, mut times) = (TopicPartitionList::new(), TopicPartitionList::new());
    for ((topic, partition), to) in rewinds {
        all.add_partition(topic, *partition);
        if let RewindTo::Time(time) = to {
            let millis = Offset::Offset(time.timestamp_millis());
            times.add_partition_offset(topic, *partition, millis)?;
        }
    }
    if rewinds.is_empty() {
        return Ok(OffsetsByPartition::new());
    }
    let ends = lag::end_offsets(client, all)?;
    let found = match times.count() {
        0 => OffsetsByPartition::new(),
        _ => lag::valid_offsets(&client.offsets_for_times(times, CLUSTER_REQUEST_TIMEOUT)?)?,
    };
    let target = |(place, to): &(TopicPartition, RewindTo)| {
        let end = *ends.get(place)?;
        let offset = match to {
            // No record is that young.
            RewindTo::Time(_) => found.get(place).copied().unwrap_or(end),
            RewindTo::Offset(offset) => *offset,
        };
        Some((place.clone(), offset.min(end)))
    };
    Ok(rewinds.iter().filter_map(target).collect())
}

pub struct RewindRequest<'a> {
    pub topic: Option<&'a str>,
    pub partition: Option<i32>,
    pub to: RewindTo,
    pub reason: &'a str,
    pub actor: Option<&'a str>,
}

/// A rewind that instances apply within seconds.
#[derive(Serialize, ToSchema)]
pub struct Rewind {
    rewind_id: i64,
    /// The events that were handled since that time, by topic. The inbox knows them, so they have no effect if they are
    /// read again.
    inbox: Vec<InboxCount>,
    /// Events are counted up to this number.
    counted_at_most: i64,
}

#[derive(Serialize, sqlx::FromRow, ToSchema)]
pub(crate) struct InboxCount {
    topic: String,
    events: i64,
}

/// Stores a request, and counts what the inbox will absorb.
pub async fn request(db: &PgPool, asked: RewindRequest<'_>) -> Result<Rewind, OperatorActError> {
    let (to_time, to_offset) = match asked.to {
        RewindTo::Time(time) => (Some(time), None),
        RewindTo::Offset(offset) => (None, Some(offset)),
    };
    let mut tx = db.begin().await?;
    // An offset has no time, so everything is counted.
    let inbox = sqlx::query_as(
        "select topic, count(*) as events
         from (select topic from chassis.inbox
               where ($1 is null or tick >= (select coalesce(max(tick), 0) from chassis.clock_ticks
                                             where recorded_at <= $1))
                 and ($2 is null or topic = $2)
               limit $3) as handled
         group by topic order by topic",
    );
    let inbox = inbox.bind(to_time).bind(asked.topic).bind(COUNT_MAX).fetch_all(&mut *tx).await?;
    let rewind_id = sqlx::query_scalar(
        "insert into chassis.rewinds (topic, partition, to_time, to_offset, reason, actor)
         values ($1, $2, $3, $4, $5, $6) returning rewind_id",
    );
    let rewind_id = rewind_id
        .bind(asked.topic)
        .bind(asked.partition)
        .bind(to_time)
        .bind(to_offset)
        .bind(storable_text(asked.reason))
        .bind(asked.actor)
        .fetch_one(&mut *tx)
        .await?;
    tx.commit().await.map_err(OperatorActError::OutcomeUnknown)?;
    Ok(Rewind { rewind_id, inbox, counted_at_most: COUNT_MAX })
}
