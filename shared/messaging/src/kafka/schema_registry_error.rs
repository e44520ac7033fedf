//! What an answer of the schema registry, or an error of its client, means.

use std::error::Error;

use schema_registry_converter::{error::SRCError, schema_registry_common::RawError};

use crate::kafka::schema_cache::CachedSchema;
use crate::telemetry::refusals;

/// What the registry answers for one id.
pub(super) enum RegistryResponse {
    Conclusive(CachedSchema),
    /// The registry refuses the request (4xx), or there is no answer, or one that is not understood.
    Open {
        because: String,
        is_refused: bool,
    },
}

/// The registry's answer shows that the schema of an id can never be used.
pub(super) fn unreadable(because: String) -> RegistryResponse {
    RegistryResponse::Conclusive(CachedSchema::Unreadable(because))
}

/// What an error means for the id that was requested. Only the registry itself refuses; a bare 404 may come from
/// any proxy on the way to it.
pub(super) fn classify_error(what: String, error: &SRCError) -> RegistryResponse {
    let because = format!("the schema registry: {what}: {}", error_summary(error));
    report_refusal(error);
    let is_refused = match http_status(error) {
        Some(404 | 408 | 429) if error_code(error) < Some(1_000) => false,
        status => status.is_some_and(|status| (400..=499).contains(&status)),
    };
    RegistryResponse::Open { because, is_refused }
}

/// Reports an answer that refuses the access of this service.
pub(super) fn report_refusal(error: &SRCError) {
    refusals::report_registry(http_status(error), &error_summary(error));
}

/// The HTTP status of an answer, by its error code or by the text of the client's library.
fn http_status(error: &SRCError) -> Option<u32> {
    match error_code(error) {
        Some(code @ 400..=599) => Some(code),
        Some(code @ 40_000..=59_999) => Some(code / 100),
        _ => error.error.split("with status ").nth(1)?.get(..3)?.parse().ok(),
    }
}

/// Whether the registry answers that it does not have the schema. A healthy registry has an error code for that. A
/// bare 404 may come from any proxy on the way to it, and is no answer.
pub(super) fn is_not_found(error: &SRCError) -> bool {
    const SUBJECT_NOT_FOUND: u32 = 40401;
    const SCHEMA_NOT_FOUND: u32 = 40403;
    error_code(error).is_some_and(|code| [SUBJECT_NOT_FOUND, SCHEMA_NOT_FOUND].contains(&code))
}

/// The error code, if the registry itself answered: an HTTP status, or one with two more digits.
pub(super) fn error_code(error: &SRCError) -> Option<u32> {
    let raw_error = error.source().and_then(|source| source.downcast_ref::<RawError>());
    raw_error.map(|raw_error| raw_error.error_code)
}

/// One line for a log.
pub(super) fn error_summary(error: &SRCError) -> String {
    let cause = error.cause.as_deref().unwrap_or("no cause given");
    format!("{} ({cause})", error.error).chars().take(300).collect()
}
