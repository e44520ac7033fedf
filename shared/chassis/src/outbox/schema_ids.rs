//! The ids that the registry gave the schemas of outbox rows.

use anyhow::Context;
use serde_json::Value;
use sqlx::PgConnection;

use crate::event::Topic;
use crate::kafka::schema_registry::{RegisteredId, SchemaIdError, SchemaRegistryClient};
use crate::outbox::backoff::Backoff;
use crate::outbox::query::{OutboxRow, with_query_timeout};

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
            let found = match registry.cached_id(topic.name, fingerprint) {
                Some(cached) => Ok(cached),
                None => registry.get_id(topic.name, fingerprint, schema).await,
            };
            let RegisteredId { id, dataschema } = match found {
                Ok(found) => found,
                Err(SchemaIdError::Unregistered(_)) if fingerprint != own => continue,
                Err(error) => return Err(error.into()),
            };
            let id = i32::try_from(id).context("the id of a schema is too large")?;
            let insert = sqlx::query(
                "insert into chassis.outbox_schema_ids (topic, fingerprint, registry_id, source, dataschema)
                 values ($1, $2, $3, $4, $5) on conflict (topic, fingerprint)
                 do update set registry_id = excluded.registry_id, dataschema = excluded.dataschema
                 where (outbox_schema_ids.registry_id, outbox_schema_ids.dataschema)
                       is distinct from (excluded.registry_id, excluded.dataschema)",
            );
            let insert = insert.bind(topic.name).bind(fingerprint).bind(id);
            let insert = insert.bind(format!("/{service}")).bind(&*dataschema).execute(&mut *db);
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
