//! A record that is read ahead of its handler, and the memory that it takes.

use rdkafka::message::{Message, OwnedMessage};
use tokio::sync::OwnedSemaphorePermit;

use crate::consumer::assignment::Assignment;
use crate::kafka::record;

/// Memory of the records that are prefetched or being handled, at most, with their keys and headers: a record
/// may be a thousand times larger than an event.
pub(super) const PREFETCH_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The approximate overhead of each record and of each header beside its bytes: a foreign record may have a
/// hundred thousand headers of two bytes.
const RECORD_OVERHEAD_BYTES: usize = 256;
const HEADER_OVERHEAD_BYTES: usize = 64;

/// A prefetched record, with its share of the memory for such records.
pub struct PrefetchedRecord {
    pub message: OwnedMessage,
    pub(super) generation: Option<u64>,
    pub permit: OwnedSemaphorePermit,
}

impl PrefetchedRecord {
    /// Whether its partition has not been assigned again since it was read.
    pub(crate) fn is_current(&self, assigned: &Assignment) -> bool {
        self.generation == assigned.generation_of(self.message.topic(), self.message.partition())
    }
}

/// The memory of a record, [`PREFETCH_BYTES_MAX`] at most. A record whose headers cannot be read counts as that
/// much.
pub(super) fn memory_bytes(message: &OwnedMessage) -> usize {
    let of = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
    let headers = record::raw_headers(message).map_or(PREFETCH_BYTES_MAX, |headers| {
        headers
            .iter()
            .map(|header| HEADER_OVERHEAD_BYTES + header.key.len() + of(header.value))
            .sum()
    });
    (RECORD_OVERHEAD_BYTES + of(message.payload()) + of(message.key()) + headers)
        .min(PREFETCH_BYTES_MAX)
}

#[cfg(test)]
mod tests {
    use rdkafka::Timestamp;
    use rdkafka::message::{Header, OwnedHeaders};

    use super::*;

    #[test]
    fn a_record_counts_with_its_key_and_its_headers() {
        let record = |payload: Option<Vec<u8>>, headers| {
            let (key, time) = (Some(vec![0; 30]), Timestamp::NotAvailable);
            memory_bytes(&OwnedMessage::new(payload, key, "topic".into(), time, 0, 0, headers))
        };
        let headers = || {
            let value = Some(&[0; 1_000]);
            Some(OwnedHeaders::new().insert(Header { key: "name", value }))
        };
        assert_eq!(record(None, None), RECORD_OVERHEAD_BYTES + 30);
        assert_eq!(
            record(Some(vec![0; 200]), headers()),
            RECORD_OVERHEAD_BYTES + HEADER_OVERHEAD_BYTES + 1_234
        );
        assert_eq!(record(Some(vec![0; 2 * PREFETCH_BYTES_MAX]), headers()), PREFETCH_BYTES_MAX);
    }
}
