//! What this process knows of each schema id: the schema, or why there is none and when to request it again.

use metrics::counter;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::event::avro::Codec;
use crate::flow::unless_test;

/// How long a caller waits for answers at most; the requests continue without it. A registry answers in
/// milliseconds, and one that hangs may not hold up the records whose schemas are known.
pub(super) const LOOKUP_TIMEOUT: Duration = Duration::from_secs(1);

/// Between two requests for an id whose schema is not settled: at first and at most. In between it is a quarter
/// of the time since the first request.
const RETRY_INTERVAL_MIN: Duration = Duration::from_millis(500);
const RETRY_INTERVAL_MAX: Duration = Duration::from_secs(10);

/// How long a request may be under way: far longer than any takes, so that an older one has been abandoned.
const IN_FLIGHT_TIMEOUT: Duration = Duration::from_secs(60);

/// How long an unreadable id is remembered before it is requested again.
const UNREADABLE_TTL: Duration = Duration::from_secs(60);

/// How long an answer of the registry counts before the registry is asked again, while the answer is in use: a registry
/// that was replaced gives other ids. While it does not answer, the earlier answer counts.
pub(super) fn validation_interval() -> Duration {
    Duration::from_secs(unless_test(10, 1))
}

/// Counts the records whose id means another schema in the registry, and the answers of the registry that show it.
pub(super) fn count_conflict() {
    counter!("schema_id_conflicts_total").increment(1);
}

/// With more ids than this, the ids without a schema are forgotten: invalid records must not fill the memory.
const CACHED_IDS_MAX: usize = 10_000;

/// What is known of a schema id.
#[derive(Clone)]
pub enum CachedSchema {
    /// The registry's schema.
    Resolved(Arc<Codec>),
    /// It cannot be used here, for this reason: it is no Avro schema, or one without a bound; or the registry
    /// refuses this id while it serves others.
    Unreadable(String),
    /// A healthy registry does not have it. It may be behind: a young record waits.
    Unregistered(String),
    /// The id meant another schema when records were read with it: wait, unless the record names this schema, which is
    /// the one that the registry has now.
    Reassigned(Option<Arc<Codec>>, String),
    /// No answer settles it yet: wait and request it again.
    Pending(String),
}

impl CachedSchema {
    /// Whether this answer takes the place of what was known. Only another schema replaces one: a registry that fails
    /// stops no record whose schema is known.
    fn replaces(&self, known: &CachedSchema) -> bool {
        match known {
            CachedSchema::Resolved(_) => {
                matches!(self, CachedSchema::Resolved(_) | CachedSchema::Reassigned(..))
            }
            CachedSchema::Reassigned(..) => {
                !matches!(self, CachedSchema::Pending(_) | CachedSchema::Unreadable(_))
            }
            _ => true,
        }
    }
}

/// The ids that a caller has to request.
pub(super) struct DueIds {
    pub ids: Vec<u32>,
    /// Whether the caller has to wait for the answers: some of the ids have no schema yet, and no earlier request hangs.
    pub is_awaited: bool,
}

struct CacheEntry {
    schema: CachedSchema,
    first_requested_at: Instant,
    last_requested_at: Instant,
    is_requested: bool,
}

impl CacheEntry {
    fn is_resolved(&self) -> bool {
        matches!(self.schema, CachedSchema::Resolved(_))
    }

    fn is_in_flight(&self) -> bool {
        self.is_requested && self.last_requested_at.elapsed() < IN_FLIGHT_TIMEOUT
    }

    fn is_due(&self) -> bool {
        let retry = match self.schema {
            CachedSchema::Resolved(_) => validation_interval(),
            CachedSchema::Unreadable(_) => UNREADABLE_TTL,
            CachedSchema::Unregistered(_)
            | CachedSchema::Reassigned(..)
            | CachedSchema::Pending(_) => ((self.last_requested_at - self.first_requested_at) / 4)
                .clamp(RETRY_INTERVAL_MIN, RETRY_INTERVAL_MAX),
        };
        !self.is_in_flight() && self.last_requested_at.elapsed() >= retry
    }
}

#[derive(Default)]
pub(super) struct SchemaCache(Mutex<HashMap<u32, CacheEntry>>);

impl SchemaCache {
    /// What is known of these ids; every id is in the answer.
    pub(super) fn get_all(&self, ids: HashSet<u32>) -> HashMap<u32, CachedSchema> {
        let schemas = self.0.lock();
        let known = |id: &u32| schemas.get(id).map(|entry| entry.schema.clone());
        let open = || CachedSchema::Pending("the schema registry has not answered yet".to_string());
        ids.into_iter().map(|id| (id, known(&id).unwrap_or_else(open))).collect()
    }

    /// An id whose schema the registry has served, if there is one.
    pub(super) fn any_resolved_id(&self) -> Option<u32> {
        self.0.lock().iter().find(|(_, entry)| entry.is_resolved()).map(|(id, _)| *id)
    }

    /// The ids that the caller has to request now.
    pub(super) fn take_due(&self, ids: &HashSet<u32>) -> DueIds {
        let mut schemas = self.0.lock();
        let mut due = DueIds { ids: Vec::new(), is_awaited: false };
        if ids.iter().all(|id| schemas.get(id).is_some_and(|entry| !entry.is_due())) {
            return due;
        }
        if schemas.len() > CACHED_IDS_MAX {
            schemas.retain(|_, entry| entry.is_in_flight() || entry.is_resolved());
        }
        let now = Instant::now();
        let hangs = schemas.values().any(|entry| {
            entry.is_in_flight() && entry.last_requested_at.elapsed() > LOOKUP_TIMEOUT
        });
        for id in ids {
            let entry = schemas.entry(*id).or_insert_with(|| CacheEntry {
                schema: CachedSchema::Pending(format!("schema {id}: no answer yet")),
                first_requested_at: now,
                last_requested_at: now.checked_sub(RETRY_INTERVAL_MIN).unwrap_or(now),
                is_requested: false,
            });
            if entry.is_due() {
                (entry.is_requested, entry.last_requested_at) = (true, now);
                due.ids.push(*id);
                due.is_awaited |= !hangs && !entry.is_resolved();
            }
        }
        due
    }

    /// Forgets every id without a schema, except those that are being requested.
    pub(super) fn evict_unresolved(&self) {
        self.0.lock().retain(|_, entry| entry.is_in_flight() || entry.is_resolved());
    }

    /// Stores the outcome of a request; `known` gets the time since the first request for this id.
    pub(super) fn store(&self, id: u32, known: impl FnOnce(Duration) -> CachedSchema) {
        let mut schemas = self.0.lock();
        let Some(entry) = schemas.get_mut(&id) else { return };
        entry.is_requested = false;
        let answered = known(entry.first_requested_at.elapsed());
        if answered.replaces(&entry.schema) {
            entry.schema = answered;
        }
    }
}
