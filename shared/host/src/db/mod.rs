//! The service's own database as the process knows it: its pool, its migrations with their grants, and the erasure of
//! a person.

pub mod erasure;
pub mod migrate;
pub mod pool;
mod privileges;

pub use messaging::db::{begin, now, with_timeout};
pub use messaging::scheduled;

/// The versions of the migrations of the service that were applied.
const SERVICE_VERSIONS: &str = "_sqlx_migrations";
