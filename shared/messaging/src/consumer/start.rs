//! Where a client begins to read partitions that it was assigned: at the group's committed offset, or at the position
//! in the service's database if that is lower.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use rdkafka::consumer::{CommitMode, Consumer as _, StreamConsumer};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};
use sqlx::PgPool;
use tracing::warn;

use crate::consumer::assignment::Assignment;
use crate::consumer::by_partition::{OffsetsByPartition, Position, TopicPartition};
use crate::consumer::gaps::{self, Gap};
use crate::consumer::lag::request_offsets;
use crate::consumer::positions;
use crate::consumer::rebalance::{self, GroupContext};
use crate::consumer::rewind::{self, RewindTo};

/// Timeout of a request.
const SEEK_TIMEOUT: Duration = Duration::from_secs(2);

/// Begins to read newly assigned partitions. Returns the offset from which each is read, and whether these are all of
/// them.
///
/// # Errors
/// If Kafka or the database does not answer. Then nothing may be read of them.
pub(super) async fn begin(
    client: &Arc<StreamConsumer<GroupContext>>,
    db: &PgPool,
    new: TopicPartitionList,
    assigned: &Assignment,
) -> anyhow::Result<(OffsetsByPartition, bool)> {
    if new.count() == 0 {
        return Ok((OffsetsByPartition::new(), true));
    }
    let cluster =
        rebalance::cluster_id(client).await.context("Kafka did not report its cluster id")?;
    let mut saved = positions::load(db, &cluster).await.context("the positions cannot be read")?;
    let rewinds = rewind::pending(db, &cluster).await.context("the rewinds cannot be read")?;
    let (seeking, known, last_rewind) = (client.clone(), saved.clone(), rewinds.last_id);
    let seek = move || seek_to_start(&seeking, new, &known, &rewinds.to);
    let seek = tokio::task::spawn_blocking(seek).await?;
    let started = seek.context("the consumer cannot seek in its partitions")?;
    let moved = positions::set(db, &cluster, &started.moved, last_rewind).await;
    moved.context("the positions cannot be set")?;
    client.context().record_rewind(last_rewind);
    for ((topic, partition), offset) in &started.rewound {
        warn!("{topic}[{partition}]: an operator moved the consumer to offset {offset}");
    }
    started.deleted.iter().for_each(gaps::report_deleted);
    let context = client.context();
    started.suspected.into_iter().for_each(|gap| context.gaps.suspect(gap));
    for Position { topic, partition, next } in started.moved {
        saved.insert((topic, partition), next);
    }
    for place in started.at.keys() {
        let generation = assigned.generation_of(&place.0, place.1).unwrap_or_default();
        let saved = saved.get(place).copied().unwrap_or_default();
        context.offsets.begin(&place.0, place.1, saved, generation);
    }
    Ok((started.at, started.all))
}

/// Where reading began.
#[derive(Default)]
struct Started {
    /// The offset from which each partition is read. One whose fetching has not begun cannot be sought yet, and is
    /// missing.
    at: OffsetsByPartition,
    /// Whether these are all partitions.
    all: bool,
    /// Positions that are not what the database has: of a partition that is read for the first time or from its
    /// beginning, or whose records were deleted.
    moved: Vec<Position>,
    suspected: Vec<Gap>,
    deleted: Vec<Gap>,
    /// Where an operator moved partitions to.
    rewound: OffsetsByPartition,
}

/// What is known of a partition before it is read: the group's committed offset, which Kafka deletes with the topic or
/// the group, the position in the database, the first offset of the log, and where an operator moves it to.
#[derive(Clone, Copy)]
struct Known {
    committed: Option<i64>,
    position: Option<i64>,
    log_start: i64,
    rewind: Option<i64>,
}

impl Known {
    /// Where reading begins. Without a committed offset everything is read: the topic may be another one of the same
    /// name, and then a position of before says nothing.
    fn start(self) -> i64 {
        let Known { committed, position, log_start, rewind } = self;
        let start = committed.map_or(log_start, |offset| position.unwrap_or(offset).min(offset));
        rewind.unwrap_or(start).max(log_start)
    }

    /// The position that is to be written, if any.
    fn moved(self) -> Option<i64> {
        let Known { committed, position, log_start, rewind } = self;
        let is_kept = rewind.is_none()
            && committed.is_some()
            && position.is_some_and(|next| next >= log_start);
        (!is_kept).then(|| self.start())
    }

    /// From and to where a committed offset skips records that were not handled, or only markers.
    fn suspected(self) -> Option<(i64, i64)> {
        let (from, to) = (self.position?.max(self.log_start), self.committed?);
        (from < to && self.rewind.is_none()).then_some((from, to))
    }

    /// From and to where records were deleted that were not handled.
    fn deleted(self) -> Option<(i64, i64)> {
        let from = self.position?;
        let is_deleted = from < self.log_start && self.rewind.is_none();
        is_deleted.then_some((from, self.log_start))
    }
}

/// Seeks to where reading begins in these partitions. `positions` are those of the database.
fn seek_to_start(
    client: &StreamConsumer<GroupContext>,
    new: TopicPartitionList,
    positions: &OffsetsByPartition,
    rewinds: &HashMap<TopicPartition, RewindTo>,
) -> KafkaResult<Started> {
    let count = new.count();
    let pending = new.elements().into_iter().filter_map(|place| {
        let of = (place.topic().to_string(), place.partition());
        rewinds.get(&of).map(|to| (of, *to))
    });
    let rewound = rewind::resolve(client, &Vec::from_iter(pending))?;
    let log_starts = request_offsets(client, new.clone(), Offset::Beginning)?;
    // The list has the epochs as well. That of a later record is as good for a lower offset.
    let mut places = client.committed_offsets(new, SEEK_TIMEOUT)?;
    let mut known = Vec::with_capacity(count);
    for mut place in places.elements() {
        let of = (place.topic().to_string(), place.partition());
        let committed = place.offset().to_raw().filter(|offset| *offset >= 0);
        let log_start = log_starts.get(&of).copied().unwrap_or_default();
        let (position, rewind) = (positions.get(&of).copied(), rewound.get(&of).copied());
        let partition = Known { committed, position, log_start, rewind };
        let start = partition.start();
        // An epoch is compared with an offset that is sought, and the beginning needs none.
        let is_beginning = start == log_start;
        place.set_offset(if is_beginning { Offset::Beginning } else { Offset::Offset(start) })?;
        known.push((of, partition));
    }
    commit(client, &rewound)?;
    places = client.seek_partitions(places, SEEK_TIMEOUT)?;
    let mut started = Started { rewound, ..Started::default() };
    for (place, ((topic, partition), known)) in places.elements().iter().zip(known) {
        if place.error().is_err() {
            continue;
        }
        let gap = |(from, to)| Gap { topic: topic.clone(), partition, from, to };
        started.suspected.extend(known.suspected().map(gap));
        started.deleted.extend(known.deleted().map(gap));
        let moved = |next| Position { topic: topic.clone(), partition, next };
        started.moved.extend(known.moved().map(moved));
        started.at.insert((topic, partition), known.start());
    }
    started.all = started.at.len() == count;
    Ok(started)
}

/// Commits the offsets of rewound partitions, so that a lower one is not taken for the last that was handled after a
/// skip.
fn commit(client: &StreamConsumer<GroupContext>, rewound: &OffsetsByPartition) -> KafkaResult<()> {
    if rewound.is_empty() {
        return Ok(());
    }
    let mut offsets = TopicPartitionList::new();
    for ((topic, partition), offset) in rewound {
        offsets.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    client.commit(&offsets, CommitMode::Sync)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_read_from_the_lower_of_both_offsets_and_what_was_skipped_or_deleted_is_told()
    {
        let (none, kept) = (None, None);
        for (committed, position, log_start, start, moved, suspected, deleted) in [
            (Some(7), Some(7), 0, 7, kept, none, none),
            (Some(5), Some(7), 0, 5, kept, none, none), // killed before the offset was committed, or rewound
            (Some(9), Some(7), 0, 7, kept, Some((7, 9)), none),
            (Some(9), None, 0, 9, Some(9), none, none), // the first start of this version
            (None, None, 3, 3, Some(3), none, none),
            (None, Some(7), 0, 0, Some(0), none, none), // another topic of that name, or a group that was deleted
            (None, Some(7), 9, 9, Some(9), none, Some((7, 9))),
            (Some(7), Some(7), 9, 9, Some(9), none, Some((7, 9))),
            (Some(12), Some(7), 9, 9, Some(9), Some((9, 12)), Some((7, 9))),
            (Some(7), Some(7), 7, 7, kept, none, none),
        ] {
            let known = Known { committed, position, log_start, rewind: None };
            assert_eq!(known.start(), start, "{committed:?} {position:?} {log_start}");
            assert_eq!(known.moved(), moved, "{committed:?} {position:?} {log_start}");
            assert_eq!(known.suspected(), suspected, "{committed:?} {position:?} {log_start}");
            assert_eq!(known.deleted(), deleted, "{committed:?} {position:?} {log_start}");
            for (to, start) in [(log_start + 1, log_start + 1), (20, 20), (0, log_start)] {
                let rewound = Known { rewind: Some(to), ..known };
                assert_eq!([Some(rewound.start()), rewound.moved()], [Some(start); 2]);
                assert_eq!([rewound.suspected(), rewound.deleted()], [None; 2]);
            }
        }
    }
}
