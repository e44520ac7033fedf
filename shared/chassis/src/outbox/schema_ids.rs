//! The ids that the registry gave the schemas of outbox rows.

use anyhow::Context;
use serde_json::Value;
use sqlx::PgConnection;

use crate::event::Topic;
use crate::kafka::schema_registry::{SchemaIdError, SchemaRegistryClient};
use crate::outbox::backoff::Backoff;
use crate::outbox::query::{OutboxRow, with_query_timeout};

/// The id of the schema of a row; `None` if there is none yet, and its topic then backs off. If the registry does
/// not answer, the relay sends no request for each further topic: its session must not be idle for long.
pub(super) async fn resolve_schema_id(
    registry: &SchemaRegistryClient,
    db: &mut PgConnection,
    row: &OutboxRow,
    backoff: &mut Backoff,
) -> anyhow::Result<Option<u32>> {
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

/// Stores the ids of all schemas with which rows of these topics may have been written, for the trigger that makes
/// records of the rows. Fails if one of the topics' own schemas has none yet; an older one may have none for good.
pub(crate) async fn store(
    registry: &SchemaRegistryClient,
    db: &mut PgConnection,
    service: &str,
    topics: &[&'static Topic],
) -> anyhow::Result<()> {
    let stored = "select fingerprint, schema from chassis.outbox_schemas";
    let stored = sqlx::query_as(stored).fetch_all(&mut *db);
    let stored: Vec<(Vec<u8>, String)> = with_query_timeout(stored).await?;
    for topic in topics {
        let own = &topic.codec().fingerprint;
        let name = record_name(topic.schema);
        for (fingerprint, schema) in stored.iter().filter(|(_, schema)| record_name(schema) == name)
        {
            let id = match registry.get_id(topic.name, fingerprint, schema).await {
                Ok(id) => i32::try_from(id).context("the id of a schema is too large")?,
                Err(SchemaIdError::Unregistered(_)) if fingerprint != own => continue,
                Err(error) => return Err(error.into()),
            };
            let insert = sqlx::query(
                "insert into chassis.outbox_schema_ids (topic, fingerprint, registry_id, source)
                 values ($1, $2, $3, $4) on conflict (topic, fingerprint)
                 do update set registry_id = excluded.registry_id
                 where outbox_schema_ids.registry_id <> excluded.registry_id",
            );
            let insert = insert.bind(topic.name).bind(fingerprint).bind(id);
            let insert = insert.bind(format!("/{service}")).execute(&mut *db);
            with_query_timeout(insert).await?;
        }
    }
    Ok(())
}

/// The name of the record that a schema describes. Two topics may publish records of one name.
fn record_name(schema: &str) -> Option<(String, Option<String>)> {
    let schema: Value = serde_json::from_str(schema).ok()?;
    let text = |key: &str| schema[key].as_str().map(str::to_string);
    Some((text("name")?, text("namespace")))
}
