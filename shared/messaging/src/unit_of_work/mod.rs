//! The unit of work: the rows that one batch touches, in memory, and the two traits by which a service loads and
//! saves them. Every write of a service goes through it, whether the work is an event or a command: load the rows,
//! decide with pure functions, save the rows that changed, commit.
//!
//! Promise: a row that a decision changes stays as it was read until the commit. An implementation of
//! [`UnitOfWork::load`] that reads such a row without locking it breaks that promise. A row that decisions only
//! read need not be locked, if an older state of it may be used too, such as the price of an item.

pub mod loader;
pub mod record;
pub mod table;
pub mod write_batch;

use crate::unit_of_work::loader::Loader;
use crate::unit_of_work::write_batch::WriteBatch;

/// The rows of one batch.
pub trait UnitOfWork: Sized + Send + 'static {
    /// Which rows a batch touches; handlers' and commands' [`Loads`] fill it in.
    type Keys: Default + Send;

    /// Reads every row that the keys name, one statement a table, locked for update where a decision
    /// may change it.
    ///
    /// Rows are locked in the order of their keys, and tables in the same order everywhere: two
    /// transactions that touch the same rows then wait for one another and never in a circle.
    fn load(
        loader: &mut Loader<'_>,
        keys: Self::Keys,
    ) -> impl Future<Output = sqlx::Result<Self>> + Send;

    /// Writes what changed, one statement a table, inserts sorted like the locks.
    fn save(&self, writes: &mut WriteBatch<'_>);
}

/// Which rows an event or a command touches.
pub trait Loads<E>: UnitOfWork {
    /// Adds them to the batch's keys.
    fn keys(event: &E, keys: &mut Self::Keys);
}
