//! The ids of schemas in the database, for the trigger that makes records of the rows of the outbox.

use anyhow::Context;
use serde_json::Value;
use sqlx::PgConnection;

use crate::db::lease::with_query_timeout;
use crate::event::Topic;
use crate::kafka::schema_registry::{RegisteredId, SchemaIdError, SchemaRegistryClient};

/// Stores the ids of all schemas with which rows of these topics may have been written. Fails if one of the topics' own
/// schemas has none yet; an older one may have none for good.
pub async fn store(
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
