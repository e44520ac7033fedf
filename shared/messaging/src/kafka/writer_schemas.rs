//! The schemas with which the records of a batch were written.
//!
//! Promise: a record is read only with the schema of its writer. If the header `ce_dataschema` names the schema, that
//! schema is used, even if the registry has another schema under the id.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::event::avro::Codec;
use crate::kafka::known_schemas::KnownSchemas;
use crate::kafka::schema_cache::{CachedSchema, count_conflict};

/// What is known of the ids of a batch.
pub struct WriterSchemas {
    by_id: HashMap<u32, CachedSchema>,
    known: Arc<KnownSchemas>,
    /// Ids that no record was read with before.
    unkept: HashSet<u32>,
    used: Mutex<HashMap<u32, Arc<Codec>>>,
}

impl WriterSchemas {
    pub(super) fn new(
        by_id: HashMap<u32, CachedSchema>,
        known: Arc<KnownSchemas>,
    ) -> WriterSchemas {
        let unkept = by_id.keys().copied().filter(|id| !known.is_kept(*id)).collect();
        WriterSchemas { by_id, known, unkept, used: Mutex::default() }
    }

    /// The schema of one id, for records of a test.
    pub fn single(id: u32, codec: Codec) -> WriterSchemas {
        let by_id = HashMap::from([(id, CachedSchema::Resolved(Arc::new(codec)))]);
        WriterSchemas::new(by_id, Arc::default())
    }

    /// The schema of a record with this id and this `ce_dataschema`.
    ///
    /// While the registry does not answer for the id, the record waits. If the registry has another schema for it, or
    /// none, the schema that the record names counts.
    ///
    /// # Panics
    /// If the id was not requested.
    pub fn find(&self, id: u32, dataschema: Option<&str>) -> CachedSchema {
        let registered = &self.by_id[&id];
        let found = match registered {
            CachedSchema::Resolved(codec) | CachedSchema::Reassigned(Some(codec), _) => Some(codec),
            _ => None,
        };
        let Some(dataschema) = dataschema else { return registered.clone() };
        match found {
            Some(codec) if codec.dataschema == dataschema => {
                return CachedSchema::Resolved(codec.clone());
            }
            Some(_) => count_conflict(),
            None if matches!(registered, CachedSchema::Pending(_)) => return registered.clone(),
            None => {}
        }
        match self.known.find(dataschema) {
            Some(codec) => CachedSchema::Resolved(codec),
            None if found.is_some() => CachedSchema::Reassigned(
                None,
                format!(
                    "schema id {id} is another schema in the registry than {dataschema}, which it was written with"
                ),
            ),
            None => registered.clone(),
        }
    }

    /// Notes that a record with this id was read with this schema.
    pub(crate) fn record_use(&self, id: u32, codec: &Arc<Codec>) {
        if self.unkept.contains(&id)
            && let CachedSchema::Resolved(registered) = &self.by_id[&id]
            && Arc::ptr_eq(registered, codec)
        {
            self.used.lock().insert(id, codec.clone());
        }
    }

    pub(super) fn take_used(&self) -> HashMap<u32, Arc<Codec>> {
        std::mem::take(&mut self.used.lock())
    }

    #[cfg(test)]
    pub(crate) fn get(&self, id: u32) -> &CachedSchema {
        &self.by_id[&id]
    }
}
