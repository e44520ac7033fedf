//! The ids under which the registry knows the schemas of outbox rows.

use std::collections::HashMap;

use sqlx::PgConnection;

use crate::kafka::schema_registry::{SchemaIdError, SchemaRegistryClient};
use crate::outbox::backoff::Backoff;
use crate::outbox::query::{OutboxRow, with_query_timeout};

/// Resolves the schema fingerprints of rows to ids.
pub(super) struct SchemaIds<'a> {
    registry: &'a SchemaRegistryClient,
    /// The texts of schemas for which the registry has not returned an id yet, by fingerprint.
    unregistered_schemas: HashMap<Vec<u8>, String>,
}

impl<'a> SchemaIds<'a> {
    pub(super) fn new(registry: &'a SchemaRegistryClient) -> SchemaIds<'a> {
        SchemaIds { registry, unregistered_schemas: HashMap::new() }
    }

    /// The id of the schema of a row; `None` if there is none yet, and its topic then backs off. A registry
    /// that does not answer is not asked for each topic: the relay's session must not stay silent for long.
    pub(super) async fn resolve(
        &mut self,
        db: &mut PgConnection,
        row: &OutboxRow,
        backoff: &mut Backoff,
    ) -> anyhow::Result<Option<u32>> {
        let OutboxRow { topic, schema_fingerprint: fingerprint, .. } = row;
        if let Some(id) = self.registry.cached_id(topic, fingerprint) {
            return Ok(Some(id));
        }
        if backoff.is_registry_backed_off() {
            backoff.back_off_topic(topic, "the schema registry does not answer");
            return Ok(None);
        }
        if !self.unregistered_schemas.contains_key(fingerprint) {
            let stored = "select schema from outbox_schemas where fingerprint = $1";
            let stored = sqlx::query_scalar(stored).bind(fingerprint);
            let Some(schema) = with_query_timeout(stored.fetch_optional(db)).await? else {
                backoff.back_off_topic(topic, "the schema of a row is not stored yet");
                return Ok(None);
            };
            self.unregistered_schemas.insert(fingerprint.clone(), schema);
        }
        match self
            .registry
            .get_id(topic, fingerprint, &self.unregistered_schemas[fingerprint])
            .await
        {
            Ok(id) => {
                self.unregistered_schemas.remove(fingerprint);
                Ok(Some(id))
            }
            Err(error) => {
                // A schema that the registry does not have, or refuses, blocks its own topic and no other.
                if let SchemaIdError::Unavailable(_) = error {
                    backoff.back_off_registry();
                }
                backoff.back_off_topic(topic, &error.to_string());
                Ok(None)
            }
        }
    }
}
