//! The ids under which the registry has the schemas that this service publishes with.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;
use schema_registry_converter::async_impl::schema_registry::{SrSettings, perform_sr_call};
use schema_registry_converter::schema_registry_common::SrCall;
use tracing::{error, warn};

use crate::event::avro::{self, Undecodable};
use crate::flow::reload;
use crate::kafka::schema_cache::{count_conflict, validation_interval};
use crate::kafka::schema_registry_error::{
    error_code, error_summary, is_not_found, report_refusal,
};

/// Why a schema has no id.
#[derive(Debug, thiserror::Error)]
pub enum SchemaIdError {
    /// It is unknown whether the registry has it: wait and request it again.
    #[error("the schema registry: {0}")]
    Unavailable(String),
    /// A healthy registry does not have it: its contract is still to be applied.
    #[error("the schema of {0} is not registered")]
    Unregistered(String),
    /// The registry answers, and refuses access.
    #[error("the registry refuses access to {0}")]
    Refused(String),
}

/// The id of a schema, and the header `ce_dataschema` of its records.
#[derive(Clone, Debug)]
pub struct RegisteredId {
    /// The id.
    pub id: u32,
    /// The fingerprint of the schema.
    pub dataschema: Arc<str>,
}

struct CachedId {
    registered: RegisteredId,
    schema: Arc<str>,
    validated_at: Instant,
}

/// Ids by topic and by the fingerprint in the outbox.
#[derive(Default)]
pub(super) struct RegisteredIds(RwLock<HashMap<String, HashMap<Vec<u8>, CachedId>>>);

impl RegisteredIds {
    pub fn get(&self, topic: &str, fingerprint: &[u8]) -> Option<RegisteredId> {
        Some(self.0.read().get(topic)?.get(fingerprint)?.registered.clone())
    }

    /// The text of a schema whose id the caller has to validate now.
    pub fn take_due(&self, topic: &str, fingerprint: &[u8]) -> Option<Arc<str>> {
        let is_due = |id: &CachedId| id.validated_at.elapsed() >= validation_interval();
        if !is_due(self.0.read().get(topic)?.get(fingerprint)?) {
            return None;
        }
        let mut ids = self.0.write();
        let entry = ids.get_mut(topic)?.get_mut(fingerprint).filter(|entry| is_due(entry))?;
        entry.validated_at = Instant::now();
        Some(entry.schema.clone())
    }

    pub fn insert(&self, topic: &str, fingerprint: &[u8], schema: &str, registered: RegisteredId) {
        let entry = CachedId { registered, schema: schema.into(), validated_at: Instant::now() };
        let mut ids = self.0.write();
        ids.entry(topic.to_string()).or_default().insert(fingerprint.to_vec(), entry);
    }

    pub fn remove(&self, topic: &str, fingerprint: &[u8]) {
        if let Some(ids) = self.0.write().get_mut(topic) {
            ids.remove(fingerprint);
        }
    }

    /// Asks for an id again. Without an answer the earlier one counts.
    pub async fn validate(
        &self,
        settings: &SrSettings,
        topic: &str,
        fingerprint: &[u8],
        schema: &str,
        earlier: u32,
    ) {
        match request_id(settings, topic, schema).await {
            Ok(found) if found.id == earlier => {}
            Ok(found) => {
                count_conflict();
                let id = found.id;
                error!(
                    "the registry was replaced: the schema of {topic} has id {id} now and had id {earlier} before"
                );
                self.insert(topic, fingerprint, schema, found);
            }
            Err(SchemaIdError::Unregistered(subject)) => {
                warn!("the registry no longer has the schema of {subject}");
                self.remove(topic, fingerprint);
            }
            Err(SchemaIdError::Unavailable(_) | SchemaIdError::Refused(_)) => {}
        }
    }
}

/// Asks for the id under which a topic's subject has exactly this schema.
pub(super) async fn request_id(
    settings: &SrSettings,
    topic: &str,
    schema: &str,
) -> Result<RegisteredId, SchemaIdError> {
    let subject = &format!("{topic}-value");
    let body = serde_json::json!({ "schema": schema, "schemaType": "AVRO" }).to_string();
    let lookup = SrCall::PostForVersion(subject, &body);
    let found = perform_sr_call(settings, lookup).await;
    let found = found.map_err(|error| {
        let message = format!("{subject}: {}", error_summary(&error));
        report_refusal(&error);
        match error_code(&error) {
            _ if is_not_found(&error) => SchemaIdError::Unregistered(subject.to_string()),
            Some(400..=499 | 40_000..=49_999) => {
                reload::request();
                SchemaIdError::Refused(message)
            }
            _ => SchemaIdError::Unavailable(message),
        }
    })?;
    let without = || SchemaIdError::Unavailable(format!("{subject}: an answer without an id"));
    let id = found.id.ok_or_else(without)?;
    let dataschema = avro::dataschema(schema)
        .map_err(|Undecodable(because)| SchemaIdError::Refused(format!("{subject}: {because}")))?;
    Ok(RegisteredId { id, dataschema: dataschema.into() })
}
