//! What a failed batch means for its loop: the one table for commands and for events.

use crate::db::{self, DbErrorClass};
use crate::dead_letter::DeadLetterReason;
use crate::telemetry::refusals;

/// Why a batch could not be applied. Its transaction has to be rolled back.
pub(crate) enum ApplyError {
    Database(sqlx::Error),
    /// The item at this index can never be decided.
    Undecidable(usize, DeadLetterReason),
    /// A command with a key was refused, and its key was not looked up.
    RefusedUnchecked,
    /// Something else is unavailable for now.
    Unavailable(String),
}

impl From<sqlx::Error> for ApplyError {
    fn from(error: sqlx::Error) -> ApplyError {
        ApplyError::Database(error)
    }
}

/// What the loop does with a batch that failed.
pub(crate) enum Reaction {
    /// It is tried again with its keys checked first: the cause may be a duplicate that was assumed to be new.
    CheckDuplicates,
    /// The item at this index can never be decided. The others are tried without it.
    Isolate(usize, DeadLetterReason),
    /// Another transaction holds a row. Each item is tried by itself, so that only the blocked one waits.
    Singles,
    /// The two halves are tried: the database refuses one item, or all of them together are too much.
    Bisect,
    /// Another transaction wrote the same key at the same moment. The next attempt finds it.
    Race(sqlx::Error),
    /// The cause concerns no single item: the batch waits, and is tried again.
    Wait(String),
    Single(DbErrorClass, sqlx::Error),
}

/// What follows an attempt for a part of a batch, in the loop of commands and in that of events.
pub(crate) enum Step<P> {
    Done,
    /// These are tried next: its parts, or all of it.
    Next(Vec<P>),
    /// It is tried again after a pause.
    Retry(P),
}

impl ApplyError {
    /// The reaction to the failure of a batch of `count` items. `checked` is whether its keys were checked first.
    pub fn reaction(self, count: usize, checked: bool) -> Reaction {
        if !checked && self.may_be_duplicate() {
            return Reaction::CheckDuplicates;
        }
        let error = match self {
            ApplyError::Undecidable(nth, reason) => return Reaction::Isolate(nth, reason),
            ApplyError::RefusedUnchecked => return Reaction::CheckDuplicates,
            ApplyError::Unavailable(reason) => return Reaction::Wait(reason),
            ApplyError::Database(error) => error,
        };
        refusals::report_postgres(&error);
        match db::classify(&error) {
            DbErrorClass::Transient => Reaction::Wait(error.to_string()),
            DbErrorClass::UniqueRace => Reaction::Race(error),
            DbErrorClass::LockTimeout if count > 1 => Reaction::Singles,
            _ if count > 1 => Reaction::Bisect,
            class => Reaction::Single(class, error),
        }
    }

    pub fn is_lock_timeout(&self) -> bool {
        matches!(self, ApplyError::Database(error) if db::classify(error) == DbErrorClass::LockTimeout)
    }

    /// Whether the cause may be a duplicate that was assumed to be new.
    fn may_be_duplicate(&self) -> bool {
        match self {
            ApplyError::Undecidable(..) | ApplyError::RefusedUnchecked => true,
            ApplyError::Database(error) => db::classify(error).may_be_duplicate(),
            ApplyError::Unavailable(_) => false,
        }
    }
}

pub(crate) fn bisect<T>(mut items: Vec<T>) -> [Vec<T>; 2] {
    let right = items.split_off(items.len() / 2);
    [items, right]
}
