//! The client of the schema registry: the relay requests the ids of schemas, the consumer the schemas of ids.
//!
//! Neither changes as long as the registry keeps its data, so the client keeps both. An outage of the registry stops no
//! record whose schema was seen before. A registry that was replaced gives other ids: while an answer is in use, the
//! client asks again, and an id that means another schema than before is not read with the new one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::{Mutex, RwLock};
use schema_registry_converter::{
    async_impl::schema_registry::{SrSettings, get_all_subjects, get_schema_by_id},
    schema_registry_common::SchemaType,
};
use sqlx::PgPool;
use tracing::warn;

use crate::event::Topic;
use crate::event::avro::{Codec, Undecodable};
use crate::kafka::known_schemas::KnownSchemas;
pub use crate::kafka::registered_ids::{RegisteredId, SchemaIdError};
use crate::kafka::registered_ids::{RegisteredIds, request_id};
pub use crate::kafka::schema_cache::CachedSchema;
use crate::kafka::schema_cache::{LOOKUP_TIMEOUT, SchemaCache};
use crate::kafka::schema_references::resolve_references;
use crate::kafka::schema_registry_error::{
    RegistryResponse, classify_error, is_not_found, unreadable,
};
use crate::kafka::writer_schemas::WriterSchemas;

/// Timeout of one request.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// How long the registry may fail for one id, while it serves another, before that id counts as unreadable.
const FAILURE_TIMEOUT: Duration = Duration::from_secs(300);

/// The text of a schema, and of those that it refers to.
type SchemaText = (String, Vec<String>);

/// Ids that are requested at the same time: a batch of invalid records must not become a thousand requests at once.
const CONCURRENT_REQUESTS_MAX: usize = 16;

/// A client of the registry, with the ids and schemas that it has received.
pub struct SchemaRegistryClient {
    /// With the present credentials.
    settings: RwLock<Arc<SrSettings>>,
    /// How long after a record was written its schema id may be unknown: the registry may be behind.
    pub(crate) lag_max: Duration,
    ids: Arc<RegisteredIds>,
    schemas: SchemaCache,
    known: Arc<KnownSchemas>,
    /// By their texts: a codec is never freed, and the registry is asked for the same schema again and again.
    codecs: Mutex<HashMap<SchemaText, Arc<Codec>>>,
    /// Topics whose schemas a healthy registry has.
    declared_topics: RwLock<Vec<&'static Topic>>,
}

impl SchemaRegistryClient {
    /// A client; connects at first use. A registry may be behind by `lag_max`.
    pub fn new(settings: SrSettings, lag_max: Duration) -> SchemaRegistryClient {
        SchemaRegistryClient {
            settings: RwLock::new(Arc::new(settings)),
            lag_max,
            ids: Arc::default(),
            schemas: SchemaCache::default(),
            known: Arc::default(),
            codecs: Mutex::default(),
            declared_topics: RwLock::default(),
        }
    }

    /// The same client, which keeps in this database what it used each id for.
    pub fn keeping_ids_in(self, db: PgPool) -> SchemaRegistryClient {
        SchemaRegistryClient { known: Arc::new(KnownSchemas::new(Some(db))), ..self }
    }

    /// Uses other credentials, and trusts other certificates, if the registry answers to a client that does.
    pub async fn renew(&self, settings: SrSettings) -> anyhow::Result<()> {
        get_all_subjects(&settings).await?;
        *self.settings.write() = Arc::new(settings);
        Ok(())
    }

    fn settings(&self) -> Arc<SrSettings> {
        self.settings.read().clone()
    }

    /// Declares a topic whose schema the registry has once contracts are applied.
    pub(crate) fn declare_topic(&self, topic: &'static Topic) {
        self.declared_topics.write().push(topic);
        let codec = Codec::new(topic.schema).expect("the committed schema is valid");
        self.known.insert(Arc::new(codec));
    }

    /// The same as [`SchemaRegistryClient::get_id`], without waiting. If the answer is old, the registry is asked again
    /// in the background.
    pub fn cached_id(&self, topic: &str, fingerprint: &[u8]) -> Option<RegisteredId> {
        let cached = self.ids.get(topic, fingerprint)?;
        if let Some(schema) = self.ids.take_due(topic, fingerprint) {
            let (ids, settings, earlier) = (self.ids.clone(), self.settings(), cached.id);
            let (topic, fingerprint) = (topic.to_owned(), fingerprint.to_vec());
            tokio::spawn(async move {
                ids.validate(&settings, &topic, &fingerprint, &schema, earlier).await;
            });
        }
        Some(cached)
    }

    /// The id under which a topic's subject holds exactly this schema. Services look up and never
    /// register: contracts are applied by one explicit command.
    ///
    /// # Errors
    /// [`SchemaIdError::Unregistered`] if a healthy registry does not have it, [`SchemaIdError::Refused`] if the
    /// registry refuses access, [`SchemaIdError::Unavailable`] if no answer within 3 s settles it.
    pub async fn get_id(
        &self,
        topic: &str,
        fingerprint: &[u8],
        schema: &str,
    ) -> Result<RegisteredId, SchemaIdError> {
        if let Some(cached) = self.ids.get(topic, fingerprint) {
            return Ok(cached);
        }
        let found = request_id(&self.settings(), topic, schema).await?;
        self.ids.insert(topic, fingerprint, schema, found.clone());
        Ok(found)
    }

    /// What is known of these ids. Those that are due are requested together, for which this waits a second at
    /// most. The result contains every id.
    pub async fn get_schemas(
        self: &Arc<Self>,
        ids: impl IntoIterator<Item = u32>,
    ) -> WriterSchemas {
        let ids: HashSet<u32> = ids.into_iter().collect();
        let due = self.schemas.take_due(&ids);
        if !due.ids.is_empty() {
            let registry = self.clone();
            let requests = tokio::spawn(async move { registry.request(due.ids).await });
            // After this wait, the result is what is known by then.
            let wait = if due.is_awaited { LOOKUP_TIMEOUT } else { Duration::ZERO };
            let _ = tokio::time::timeout(wait, requests).await;
        }
        WriterSchemas::new(self.schemas.get_all(ids), self.known.clone())
    }

    /// Keeps for what the ids of a batch were used, if they were not used before.
    pub(crate) async fn keep_used(&self, schemas: &WriterSchemas) {
        for (id, codec) in schemas.take_used() {
            if let Err(error) = self.known.keep(id, codec).await {
                warn!("the schema of id {id} could not be stored: {error}");
            }
        }
    }

    /// Forgets every id without a schema, so that it is requested again: an operator may just have registered
    /// its schema.
    pub fn evict_unresolved(&self) {
        self.schemas.evict_unresolved();
    }

    /// Requests ids and stores each answer.
    ///
    /// A refusal is final for one id only while another is served: 401 and 403 for every id are a wrong
    /// password, which is waited for.
    async fn request(&self, ids: Vec<u32>) {
        let mut open = Vec::new();
        let mut serves = false;
        let known = self.known.read().await;
        for some in ids.chunks(CONCURRENT_REQUESTS_MAX) {
            let answers = join_all(some.iter().map(|id| self.request_one(*id))).await;
            for (id, answer) in some.iter().zip(answers) {
                match answer {
                    RegistryResponse::Conclusive(answered) => {
                        serves |= matches!(answered, CachedSchema::Resolved(_));
                        self.schemas.store(*id, |_| match &known {
                            Ok(()) => self.known.compare(*id, answered),
                            Err(error) => CachedSchema::Pending(format!(
                                "the stored schema of id {id} could not be read: {error}"
                            )),
                        });
                    }
                    RegistryResponse::Open { because, is_refused } => {
                        open.push((*id, because, is_refused));
                    }
                }
            }
        }
        if open.is_empty() {
            return;
        }
        serves = serves || self.serves_other_ids(&ids).await;
        for (id, because, is_refused) in open {
            self.schemas.store(id, |failing_for| {
                match serves && (is_refused || failing_for > FAILURE_TIMEOUT) {
                    true => CachedSchema::Unreadable(because),
                    false => CachedSchema::Pending(because),
                }
            });
        }
    }

    /// Whether the registry serves any id but these: one that it served before, or that of a declared topic.
    async fn serves_other_ids(&self, ids: &[u32]) -> bool {
        if let Some(id) = self.schemas.any_resolved_id() {
            return get_schema_by_id(id, &self.settings()).await.is_ok();
        }
        let declared = self.declared_topics.read().clone();
        for topic in declared {
            let fingerprint = &topic.codec().fingerprint;
            if let Ok(RegisteredId { id, .. }) =
                self.get_id(topic.name, fingerprint, topic.schema).await
                && !ids.contains(&id)
            {
                return get_schema_by_id(id, &self.settings()).await.is_ok();
            }
        }
        false
    }

    async fn request_one(&self, id: u32) -> RegistryResponse {
        // Ids are positive 32-bit integers. A registry may answer 500 to a larger number. That would count as an
        // outage, and the record would wait for ever.
        if i32::try_from(id).is_err() {
            return unreadable(format!("{id} is no schema id"));
        }
        let settings = self.settings();
        let found = match get_schema_by_id(id, &settings).await {
            Ok(found) => found,
            Err(error) if is_not_found(&error) => {
                return RegistryResponse::Conclusive(CachedSchema::Unregistered(format!(
                    "schema id {id} is unknown"
                )));
            }
            Err(error) => return classify_error(format!("schema {id}"), &error),
        };
        if found.schema_type != SchemaType::Avro {
            return unreadable(format!("schema {id} is not Avro"));
        }
        let references = match resolve_references(&settings, id, &found.references).await {
            Ok(references) => references,
            Err(answer) => return answer,
        };
        let source = (found.schema, references);
        if let Some(known) = self.codecs.lock().get(&source) {
            return RegistryResponse::Conclusive(CachedSchema::Resolved(known.clone()));
        }
        match Codec::with_references(&source.0, &source.1) {
            Ok(codec) => {
                let codec = Arc::new(codec);
                self.codecs.lock().insert(source, codec.clone());
                RegistryResponse::Conclusive(CachedSchema::Resolved(codec))
            }
            Err(Undecodable(because)) => unreadable(format!("schema {id}: {because}")),
        }
    }
}

#[cfg(test)]
#[path = "schema_registry_tests.rs"]
mod tests;
