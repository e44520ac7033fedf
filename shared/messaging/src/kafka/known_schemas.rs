//! The schemas that this service knows by itself: those of its topics, and those that it has read records with.
//!
//! Promise: an id of the registry keeps the meaning that it had when a record was first read with it. A registry that
//! was replaced or set back gives ids to other schemas, and a record that was read with one of those would be another
//! event.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use sqlx::PgPool;
use tracing::error;

use crate::event::avro::Codec;
use crate::kafka::schema_cache::{CachedSchema, count_conflict};
use crate::telemetry::log_throttle::LogThrottle;

/// A row of `chassis.schema_ids`.
type KeptRow = (i32, String, String, Vec<String>);

/// Codecs by their fingerprint, and the fingerprints of ids.
#[derive(Default)]
pub(super) struct KnownSchemas {
    /// Without it nothing is kept.
    db: Option<PgPool>,
    codecs: RwLock<HashMap<String, Arc<Codec>>>,
    /// What each id was used for; `None` until it was read from the database.
    kept: RwLock<Option<HashMap<u32, String>>>,
    log_throttle: Mutex<LogThrottle>,
}

impl KnownSchemas {
    pub fn new(db: Option<PgPool>) -> KnownSchemas {
        KnownSchemas { db, ..KnownSchemas::default() }
    }

    pub fn insert(&self, codec: Arc<Codec>) {
        self.codecs.write().entry(codec.dataschema.clone()).or_insert(codec);
    }

    pub fn find(&self, dataschema: &str) -> Option<Arc<Codec>> {
        self.codecs.read().get(dataschema).cloned()
    }

    /// The schema that an id was used for.
    fn kept(&self, id: u32) -> Option<Arc<Codec>> {
        let kept = self.kept.read();
        self.find(kept.as_ref()?.get(&id)?)
    }

    /// Compares the registry's answer with what the id was used for. A registry that has lost the id does not contradict
    /// that.
    pub fn compare(&self, id: u32, answered: CachedSchema) -> CachedSchema {
        let Some(kept) = self.kept(id) else { return answered };
        let found = match answered {
            CachedSchema::Resolved(found) if found.dataschema == kept.dataschema => {
                return CachedSchema::Resolved(found);
            }
            CachedSchema::Unregistered(_) => return CachedSchema::Resolved(kept),
            CachedSchema::Resolved(found) => Some(found),
            _ => None,
        };
        count_conflict();
        let reason = format!(
            "schema id {id} now stands for another schema in the registry than {}, for which it was used before: the \
             registry was replaced or restored",
            kept.dataschema
        );
        if self.log_throttle.lock().should_log(&id.to_string(), &reason) {
            error!("{reason}");
        }
        CachedSchema::Reassigned(found, reason)
    }

    pub fn is_kept(&self, id: u32) -> bool {
        self.db.is_none() || self.kept.read().as_ref().is_some_and(|kept| kept.contains_key(&id))
    }

    /// Reads what the database has. It is read again before each answer of the registry counts, since an operator may
    /// have deleted rows.
    ///
    /// # Errors
    /// If it was never read, and cannot be read now.
    pub async fn read(&self) -> sqlx::Result<()> {
        let Some(db) = &self.db else { return Ok(()) };
        let rows = "select registry_id, dataschema, schema, referenced from chassis.schema_ids";
        let rows: Vec<KeptRow> = match sqlx::query_as(rows).fetch_all(db).await {
            Ok(rows) => rows,
            Err(_) if self.kept.read().is_some() => return Ok(()),
            Err(error) => return Err(error),
        };
        let mut kept = HashMap::new();
        for (id, dataschema, schema, referenced) in rows {
            // Parsed once: a codec is never freed.
            if self.find(&dataschema).is_none()
                && let Ok(codec) = Codec::with_references(&schema, &referenced)
            {
                self.codecs.write().insert(dataschema.clone(), Arc::new(codec));
            }
            kept.insert(id.cast_unsigned(), dataschema);
        }
        *self.kept.write() = Some(kept);
        Ok(())
    }

    /// Keeps what this id is used for, unless it was used before.
    pub async fn keep(&self, id: u32, codec: Arc<Codec>) -> sqlx::Result<()> {
        let Some(db) = &self.db else { return Ok(()) };
        let (schema, referenced) = &codec.source;
        let insert = "insert into chassis.schema_ids (registry_id, dataschema, schema, referenced)
                      values ($1, $2, $3, $4) on conflict do nothing";
        let insert = sqlx::query(insert).bind(id.cast_signed()).bind(&codec.dataschema);
        insert.bind(schema).bind(referenced).execute(db).await?;
        let mut kept = self.kept.write();
        kept.get_or_insert_default().entry(id).or_insert_with(|| codec.dataschema.clone());
        drop(kept);
        self.insert(codec);
        Ok(())
    }
}
