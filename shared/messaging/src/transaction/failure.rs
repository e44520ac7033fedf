//! What a failed part of a batch means for its loop: the one table for commands, events and replays.

use crate::db::{self, DbErrorClass};
use crate::dead_letter::DeadLetterReason;
use crate::telemetry::refusals;

/// Why a part of a batch could not be applied. Its transaction has to be rolled back.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("{1}")]
    Database(DbErrorClass, sqlx::Error),
    /// The item at this index can never be decided.
    #[error("{}", .1.detail)]
    Undecidable(usize, DeadLetterReason),
    /// A command with a key was refused, and its key was not looked up.
    #[error("a refused key was not looked up")]
    RefusedUnchecked,
    /// Something else is unavailable for now.
    #[error("{0}")]
    Unavailable(String),
    /// The schema of a record is not known yet. `is_unregistered` if a healthy registry answered that it does not have
    /// the schema.
    #[error("{reason}")]
    SchemaPending { reason: String, is_unregistered: bool },
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Failure {
        Failure::Database(db::classify(&error), error)
    }
}

/// What the loop does next with a part that failed.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// It tries the part again with its keys checked first: the cause may be a duplicate that was assumed to be new.
    CheckDuplicates,
    /// It takes out the item at this index, which can never be decided. The others are tried without it.
    Isolate(usize),
    /// It tries each item by itself, so that only the one whose row another transaction holds waits.
    Singles,
    /// It tries the two halves: the database refuses one item, or all of them together are too much.
    Halves,
    /// It tries the part again. Another transaction wrote the same key at the same moment, and the next attempt finds
    /// it.
    Race,
    /// It waits, and tries the part again: the cause concerns no single item.
    Retry,
    /// The single item waits by itself: the cause concerns no other item, and it may pass.
    Defer,
    /// The single item can never be applied.
    Reject(DeadLetterReason),
}

impl Failure {
    /// The table: what follows the failure of a part with `count` items, which has lost so many `races`. `checked` is
    /// whether its keys were checked first.
    pub fn next(&self, count: usize, checked: bool, races: u32) -> Next {
        use DbErrorClass::*;
        if let Failure::Database(_, error) = self {
            refusals::report_postgres(error);
        }
        match self {
            Failure::RefusedUnchecked => Next::CheckDuplicates,
            Failure::Undecidable(..) | Failure::Database(UniqueRace | Permanent, _) if !checked => {
                Next::CheckDuplicates
            }
            Failure::Unavailable(_) | Failure::Database(Transient, _) => Next::Retry,
            Failure::Database(UniqueRace, _) if races == 0 => Next::Race,
            Failure::Undecidable(nth, _) if count > 1 => Next::Isolate(*nth),
            Failure::Database(LockTimeout, _) if count > 1 => Next::Singles,
            Failure::Database(..) if count > 1 => Next::Halves,
            Failure::Database(
                LockTimeout | StatementTimeout | DatabaseRule | SchemaMismatch,
                _,
            )
            | Failure::SchemaPending { .. } => Next::Defer,
            Failure::Undecidable(_, reason) => Next::Reject(reason.clone()),
            Failure::Database(UniqueRace | Permanent, error) => {
                Next::Reject(DeadLetterReason::rejected_by_database(error))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::DbErrorClass::*;
    use super::Next::*;
    use super::*;

    /// What follows each failure: of one item and of three, each with its keys assumed to be new and with them checked.
    #[test]
    fn every_failure_has_its_row_in_the_table() {
        let database = |class| Failure::Database(class, sqlx::Error::PoolClosed);
        let refused = || Reject(DeadLetterReason::rejected_by_database(&sqlx::Error::PoolClosed));
        let reason = || DeadLetterReason::unprocessable("there is no such order");
        let pending = |is_unregistered| Failure::SchemaPending {
            reason: "no such schema".to_string(),
            is_unregistered,
        };
        for (failure, races, one, three) in [
            (database(Transient), 0, [Retry, Retry], [Retry, Retry]),
            (database(Transient), 1, [Retry, Retry], [Retry, Retry]),
            (database(StatementTimeout), 0, [Defer, Defer], [Halves, Halves]),
            (database(LockTimeout), 0, [Defer, Defer], [Singles, Singles]),
            (database(UniqueRace), 0, [CheckDuplicates, Race], [CheckDuplicates, Race]),
            (database(UniqueRace), 1, [CheckDuplicates, refused()], [CheckDuplicates, Halves]),
            (database(Permanent), 0, [CheckDuplicates, refused()], [CheckDuplicates, Halves]),
            (database(DatabaseRule), 0, [Defer, Defer], [Halves, Halves]),
            (database(SchemaMismatch), 0, [Defer, Defer], [Halves, Halves]),
            (
                Failure::Undecidable(0, reason()),
                0,
                [CheckDuplicates, Reject(reason())],
                [CheckDuplicates, Isolate(0)],
            ),
            (
                Failure::Undecidable(2, reason()),
                1,
                [CheckDuplicates, Reject(reason())],
                [CheckDuplicates, Isolate(2)],
            ),
            (
                Failure::RefusedUnchecked,
                0,
                [CheckDuplicates, CheckDuplicates],
                [CheckDuplicates, CheckDuplicates],
            ),
            (Failure::Unavailable("the cluster".into()), 0, [Retry, Retry], [Retry, Retry]),
            (pending(true), 0, [Defer, Defer], [Defer, Defer]),
            (pending(false), 0, [Defer, Defer], [Defer, Defer]),
        ] {
            for (count, expected) in [(1, one), (3, three)] {
                for (checked, expected) in [false, true].into_iter().zip(expected) {
                    let case = format!("{failure:?} of {count}, {checked}, {races} races");
                    assert_eq!(failure.next(count, checked, races), expected, "{case}");
                }
            }
        }
    }
}
