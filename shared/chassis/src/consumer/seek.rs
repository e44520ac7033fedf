//! Where a client reads its partitions from, when that is not where it has come to.

use std::time::Duration;

use rdkafka::consumer::{Consumer as _, StreamConsumer};
use rdkafka::error::KafkaResult;
use rdkafka::{Offset, TopicPartitionList};

use crate::consumer::offsets::OffsetsByPartition;
use crate::consumer::rebalance::GroupContext;

/// Timeout of a request.
const SEEK_TIMEOUT: Duration = Duration::from_secs(2);

/// Seeks to the group's committed offsets of these partitions; to the beginning of those that have none. Returns
/// the offset from which each is read, and whether these are all partitions: one whose fetching has not begun
/// cannot be sought yet.
pub(super) fn seek_to_committed(
    client: &StreamConsumer<GroupContext>,
    new: TopicPartitionList,
) -> KafkaResult<(OffsetsByPartition, bool)> {
    let count = new.count();
    if count == 0 {
        return Ok((OffsetsByPartition::new(), true));
    }
    // The list has the epochs as well.
    let mut places = client.committed_offsets(new, SEEK_TIMEOUT)?;
    for mut place in places.elements() {
        if !matches!(place.offset(), Offset::Offset(_)) {
            place.set_offset(Offset::Beginning)?;
        }
    }
    places = client.seek_partitions(places, SEEK_TIMEOUT)?;
    let mut at = OffsetsByPartition::new();
    for place in places.elements() {
        if place.error().is_ok() {
            let offset = place.offset().to_raw().unwrap_or_default().max(0);
            at.insert((place.topic().to_string(), place.partition()), offset);
        }
    }
    let all = at.len() == count;
    Ok((at, all))
}
