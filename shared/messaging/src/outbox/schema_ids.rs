//! The ids that the registry gave the schemas of outbox rows.

use sqlx::PgConnection;

use crate::db::lease::with_query_timeout;
use crate::kafka::schema_registry::{RegisteredId, SchemaIdError, SchemaRegistryClient};
use crate::outbox::backoff::Backoff;
use crate::outbox::query::OutboxRow;

/// The id of the schema of a row, and its `ce_dataschema`; `None` if there is none yet, and its topic then backs off. If
/// the registry does not answer, the relay sends no request for each further topic: its session must not be idle for
/// long.
pub(super) async fn resolve_schema_id(
    registry: &SchemaRegistryClient,
    db: &mut PgConnection,
    row: &OutboxRow,
    backoff: &mut Backoff,
) -> anyhow::Result<Option<RegisteredId>> {
    let OutboxRow { topic, schema_fingerprint: fingerprint, .. } = row;
    if let Some(id) = registry.cached_id(topic, fingerprint) {
        return Ok(Some(id));
    }
    if backoff.is_registry_backed_off() {
        backoff.back_off_topic(topic, "the schema registry does not answer");
        return Ok(None);
    }
    let stored = "select schema from chassis.outbox_schemas where fingerprint = $1";
    let stored = sqlx::query_scalar::<_, String>(stored).bind(fingerprint);
    let Some(schema) = with_query_timeout(stored.fetch_optional(db)).await? else {
        backoff.back_off_topic(topic, "the schema of a row is not stored yet");
        return Ok(None);
    };
    let resolved = registry.get_id(topic, fingerprint, &schema).await;
    if let Err(error) = &resolved {
        // A schema that the registry does not have, or refuses, blocks its own topic and no other.
        if let SchemaIdError::Unavailable(_) = error {
            backoff.back_off_registry();
        }
        backoff.back_off_topic(topic, &error.to_string());
    }
    Ok(resolved.ok())
}
