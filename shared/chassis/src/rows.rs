//! The rows that one batch touches, in memory, and the two traits that say how a service loads and
//! saves them. Everything that writes does it the same way, whether the work came from Kafka or
//! from HTTP: load what is touched, decide with pure functions, save what changed, commit.

use std::panic::{AssertUnwindSafe, catch_unwind};

use sqlx::PgConnection;

/// The rows of one batch.
pub trait Rows: Sized + Send + 'static {
    /// Which rows a batch touches; handlers' and commands' [`Touches`] fill it in.
    type Keys: Default + Send;

    /// Reads every row that the keys name, locked for update, one statement a table.
    ///
    /// Rows are locked in the order of their keys, and tables in the same order everywhere: two
    /// transactions that touch the same rows then wait for one another and never in a circle.
    fn load(
        db: &mut PgConnection,
        keys: Self::Keys,
    ) -> impl Future<Output = sqlx::Result<Self>> + Send;

    /// Writes what changed, one statement a table, inserts sorted like the locks.
    fn save(&mut self, db: &mut PgConnection) -> impl Future<Output = sqlx::Result<()>> + Send;
}

/// Which rows an event or a command touches.
pub trait Touches<E>: Rows {
    /// Adds them to the batch's keys.
    fn touch(event: &E, keys: &mut Self::Keys);
}

/// Calls a deciding function; a panic in it is the event's fault and comes back as text.
pub(crate) fn guarded<T>(decide: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(decide)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
        text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or("panic".into())
    })
}
