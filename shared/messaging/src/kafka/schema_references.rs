//! The schemas that a schema refers to. A codec needs the texts of all of them.

use std::collections::HashSet;

use schema_registry_converter::async_impl::schema_registry::{SrSettings, get_referenced_schema};
use schema_registry_converter::schema_registry_common::RegisteredReference;

use crate::kafka::schema_registry_error::{RegistryResponse, classify_error, unreadable};

/// Schemas that one schema may refer to, directly or not.
const REFERENCES_MAX: usize = 64;

/// The texts of the schemas that the schema with this id refers to, directly or indirectly, each behind those that it
/// refers to itself.
///
/// # Errors
/// What the registry's answer means for the id, if one of them cannot be had or there are too many.
pub(super) async fn resolve_references(
    settings: &SrSettings,
    id: u32,
    referred: &[RegisteredReference],
) -> Result<Vec<String>, RegistryResponse> {
    let mut texts = Vec::new();
    add_references(settings, id, referred, &mut HashSet::new(), &mut texts).await?;
    Ok(texts)
}

/// `visited` has subjects and versions.
async fn add_references(
    settings: &SrSettings,
    id: u32,
    referred: &[RegisteredReference],
    visited: &mut HashSet<(String, u32)>,
    texts: &mut Vec<String>,
) -> Result<(), RegistryResponse> {
    for reference in referred {
        let RegisteredReference { subject, version, .. } = reference;
        if !visited.insert((subject.clone(), *version)) {
            continue;
        }
        if visited.len() > REFERENCES_MAX {
            return Err(unreadable(format!(
                "schema {id} refers to more than {REFERENCES_MAX} others"
            )));
        }
        let found = get_referenced_schema(settings, reference).await.map_err(|error| {
            classify_error(format!("schema {id}, which refers to {subject} {version}"), &error)
        })?;
        Box::pin(add_references(settings, id, &found.references, visited, texts)).await?;
        texts.push(found.schema);
    }
    Ok(())
}
