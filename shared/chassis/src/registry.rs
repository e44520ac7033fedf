//! The schema registry, as seen by relay and consumer: ids of schemas and schemas of ids.
//!
//! Both never change once known, so each is asked for once and kept. A registry that is away stops
//! nothing that was seen before.

use std::collections::HashMap;
use std::error::Error;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use schema_registry_converter::{
    async_impl::schema_registry::{SrSettings, get_schema_by_id, perform_sr_call},
    error::SRCError,
    schema_registry_common::{RawError, SchemaType, SrCall},
};

use crate::avro::{Codec, Undecodable};
use crate::config::{SchemaRegistry, Secret};

/// One request, at most.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(3);

/// An unknown id is asked for this often within [`UNKNOWN_WAIT`]: a registry with replicas may
/// know a new schema here and not yet there.
const UNKNOWN_TRIES: u32 = 3;
const UNKNOWN_WAIT: Duration = Duration::from_secs(2);

/// For how long an id is then taken to be unknown without asking again.
const UNKNOWN_KEPT: Duration = Duration::from_secs(60);

/// With more ids than this, those of nothing that can be read are forgotten: junk must not fill the
/// memory.
const REMEMBERED_MAX: usize = 10_000;

/// A client of the registry with what it has learned.
pub struct Registry {
    settings: SrSettings,
    /// By topic and fingerprint.
    ids: RwLock<HashMap<String, HashMap<Vec<u8>, u32>>>,
    schemas: RwLock<HashMap<u32, Known>>,
}

/// What is known of a schema id.
#[derive(Clone)]
pub enum Known {
    /// The registry's schema.
    Schema(Arc<Codec>),
    /// A healthy registry does not have it, or it is no schema we could read.
    Unreadable(String, Instant),
}

/// The registry gave no answer that settles the question: wait and ask again.
#[derive(Debug, thiserror::Error)]
#[error("the schema registry: {0}")]
pub struct Unreachable(String);

/// Why a schema has no id.
#[derive(Debug, thiserror::Error)]
pub enum NoId {
    /// Nobody can tell.
    #[error(transparent)]
    Unreachable(#[from] Unreachable),
    /// A healthy registry does not have it: its contract is still to be applied.
    #[error("the schema of {0} is not registered")]
    Unregistered(String),
    /// The registry answers, and won't say.
    #[error("the registry refuses to tell of {0}")]
    Refused(String),
}

impl Registry {
    /// A client; connects at first use.
    pub fn new(config: &SchemaRegistry) -> anyhow::Result<Registry> {
        let mut settings = SrSettings::new_builder(config.schema_registry_url.clone());
        if let Some(username) = &config.schema_registry_username {
            let password = config.schema_registry_password.as_ref().map(Secret::expose);
            settings.set_basic_authorization(username, password);
        }
        Ok(Registry {
            settings: settings.set_timeout(REQUEST_TIMEOUT).build()?,
            ids: RwLock::default(),
            schemas: RwLock::default(),
        })
    }

    /// The same as [`Registry::id_of`], without asking.
    pub fn known_id_of(&self, topic: &str, fingerprint: &[u8]) -> Option<u32> {
        self.ids.read().expect("not poisoned").get(topic)?.get(fingerprint).copied()
    }

    /// The id under which a topic's subject holds exactly this schema. Services look up and never
    /// register: contracts are applied by one explicit command.
    ///
    /// # Errors
    /// [`NoId::Unregistered`] if a healthy registry does not have it, [`NoId::Refused`] if the
    /// registry answers and won't say, [`NoId::Unreachable`] if no answer within 3 s settles it.
    pub async fn id_of(&self, topic: &str, fingerprint: &[u8], schema: &str) -> Result<u32, NoId> {
        if let Some(id) = self.known_id_of(topic, fingerprint) {
            return Ok(id);
        }
        let subject = &format!("{topic}-value");
        let body = serde_json::json!({ "schema": schema, "schemaType": "AVRO" }).to_string();
        let found = perform_sr_call(&self.settings, SrCall::PostForVersion(subject, &body)).await;
        let found = found.map_err(|error| {
            let told = format!("{subject}: {}", brief(&error));
            match error_code(&error) {
                _ if unknown(&error) => NoId::Unregistered(subject.to_string()),
                Some(400..=499 | 40_000..=49_999) => NoId::Refused(told),
                _ => Unreachable(told).into(),
            }
        })?;
        let without = || Unreachable(format!("{subject}: an answer without an id"));
        let id = found.id.ok_or_else(without)?;
        let mut ids = self.ids.write().expect("not poisoned");
        ids.entry(topic.to_string()).or_default().insert(fingerprint.to_vec(), id);
        Ok(id)
    }

    /// The schemas of these ids, asked for together; every id asked for is in the answer.
    pub async fn schemas_of(
        &self,
        ids: impl IntoIterator<Item = u32>,
    ) -> Result<HashMap<u32, Known>, Unreachable> {
        let mut known: HashMap<u32, Known> = HashMap::new();
        let mut asked: Vec<u32> = Vec::new();
        {
            let schemas = self.schemas.read().expect("not poisoned");
            for id in ids {
                match schemas.get(&id) {
                    Some(Known::Unreadable(_, since)) if since.elapsed() > UNKNOWN_KEPT => {
                        asked.push(id)
                    }
                    Some(found) => {
                        known.insert(id, found.clone());
                    }
                    None => asked.push(id),
                }
            }
        }
        if asked.is_empty() {
            return Ok(known);
        }
        asked.sort_unstable();
        asked.dedup();
        let asked = self.ask_for(asked, &mut known).await;
        let mut schemas = self.schemas.write().expect("not poisoned");
        if schemas.len() > REMEMBERED_MAX {
            schemas.retain(|_, known| matches!(known, Known::Schema(_)));
        }
        schemas.extend(known.iter().map(|(id, found)| (*id, found.clone())));
        asked.map(|()| known)
    }

    /// Has everything asked for again that is remembered as unknown: somebody may just have
    /// registered it.
    pub fn forget_unknown(&self) {
        let mut schemas = self.schemas.write().expect("not poisoned");
        schemas.retain(|_, known| matches!(known, Known::Schema(_)));
    }

    /// Asks for ids, those that are unknown a few times, and notes each answer. An error says that
    /// some are still open.
    async fn ask_for(
        &self,
        mut asked: Vec<u32>,
        known: &mut HashMap<u32, Known>,
    ) -> Result<(), Unreachable> {
        for attempt in 1..=UNKNOWN_TRIES {
            // A handful at a time: a batch of junk must not become a thousand requests at once.
            let mut unknown = Vec::new();
            for some in asked.chunks(16) {
                let answers = futures::future::join_all(some.iter().map(|id| self.ask(*id))).await;
                for (id, answer) in some.iter().zip(answers) {
                    match answer? {
                        Known::Unreadable(..) if attempt < UNKNOWN_TRIES => unknown.push(*id),
                        found => {
                            known.insert(*id, found);
                        }
                    }
                }
            }
            if unknown.is_empty() {
                break;
            }
            asked = unknown;
            tokio::time::sleep(UNKNOWN_WAIT / (UNKNOWN_TRIES - 1)).await;
        }
        Ok(())
    }

    async fn ask(&self, id: u32) -> Result<Known, Unreachable> {
        let unreadable = |because: String| Ok(Known::Unreadable(because, Instant::now()));
        // Ids are positive 32-bit integers; a registry may answer 500 to a larger one, which would
        // read as a registry that is ill, and wait for ever.
        if i32::try_from(id).is_err() {
            return unreadable(format!("{id} is no schema id"));
        }
        match get_schema_by_id(id, &self.settings).await {
            Ok(found) if found.schema_type != SchemaType::Avro => {
                unreadable(format!("schema {id} is not Avro"))
            }
            Ok(found) => match Codec::new(&found.schema) {
                Ok(codec) => Ok(Known::Schema(Arc::new(codec))),
                Err(Undecodable(because)) => unreadable(format!("schema {id}: {because}")),
            },
            Err(error) if unknown(&error) => unreadable(format!("schema id {id} is unknown")),
            Err(error) => Err(Unreachable(format!("schema {id}: {}", brief(&error)))),
        }
    }
}

/// A healthy registry says so with an error code of its own. A bare 404 may come from anybody on the
/// way to it, and is no answer.
fn unknown(error: &SRCError) -> bool {
    const SUBJECT_NOT_FOUND: u32 = 40401;
    const SCHEMA_NOT_FOUND: u32 = 40403;
    error_code(error).is_some_and(|code| [SUBJECT_NOT_FOUND, SCHEMA_NOT_FOUND].contains(&code))
}

/// What the registry itself says, if it was the registry: an HTTP status, or that with two digits more.
fn error_code(error: &SRCError) -> Option<u32> {
    let said = error.source().and_then(|source| source.downcast_ref::<RawError>());
    said.map(|said| said.error_code)
}

/// One line for a log.
fn brief(error: &SRCError) -> String {
    let cause = error.cause.as_deref().unwrap_or("no cause given");
    format!("{} ({cause})", error.error).chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use axum::http::StatusCode;
    use axum::{Json, Router};
    use serde_json::json;

    use super::*;

    /// A client of something that answers every request with this.
    async fn asking(status: StatusCode, body: serde_json::Value) -> Registry {
        let answer = move || async move { (status, Json(body)) };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let schema_registry_url = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async { axum::serve(listener, Router::new().fallback(answer)).await });
        let (schema_registry_username, schema_registry_password) = (None, None);
        Registry::new(&SchemaRegistry {
            schema_registry_url,
            schema_registry_username,
            schema_registry_password,
        })
        .unwrap()
    }

    #[tokio::test]
    async fn only_the_registrys_own_word_makes_a_schema_unknown() {
        let said = json!({ "error_code": 40403, "message": "Schema not found" });
        let registry = asking(StatusCode::NOT_FOUND, said).await;
        let known = registry.schemas_of([7, u32::MAX]).await.unwrap();
        assert!(known.values().all(|known| matches!(known, Known::Unreadable(..))));
        assert_eq!(known.len(), 2);
        for (status, body) in [
            (StatusCode::NOT_FOUND, json!("no such page")),
            (StatusCode::UNPROCESSABLE_ENTITY, json!({ "error_code": 422, "message": "" })),
            (StatusCode::INTERNAL_SERVER_ERROR, json!({ "error_code": 50001, "message": "" })),
        ] {
            assert!(asking(status, body).await.schemas_of([7]).await.is_err(), "{status}");
        }
    }

    #[tokio::test]
    async fn a_schema_that_the_registry_refuses_to_tell_of_is_no_sign_that_it_is_away() {
        let id_of = async |status, error_code: u32| {
            let said = json!({ "error_code": error_code, "message": "" });
            asking(status, said).await.id_of("till.counted", b"", "{}").await.unwrap_err()
        };
        assert!(matches!(id_of(StatusCode::NOT_FOUND, 40401).await, NoId::Unregistered(_)));
        assert!(matches!(id_of(StatusCode::FORBIDDEN, 40301).await, NoId::Refused(_)));
        assert!(matches!(id_of(StatusCode::UNPROCESSABLE_ENTITY, 422).await, NoId::Refused(_)));
        let broken = id_of(StatusCode::INTERNAL_SERVER_ERROR, 50001).await;
        assert!(matches!(broken, NoId::Unreachable(_)), "{broken}");
    }
}
