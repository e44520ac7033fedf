//! The rows of one table that a batch touches: an identity map that records which rows changed.

use std::borrow::Borrow;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::unit_of_work::record::Record;
use crate::unit_of_work::write_batch::WriteBatch;

/// The rows of one table that a batch touches, by key, each with the write that it needs. They are sorted, so that
/// inserts wait for one another in one direction, like locks.
///
/// The key is the table's primary key, or another that is unique there: a missing row cannot be locked, and only
/// that constraint keeps two transactions from both inserting it.
///
/// A row that was not requested is not the same as a missing row. So a decision that uses a key which no [`Loads`]
/// of the batch has named panics: its event becomes a dead letter, its command gets a 500.
///
/// [`Loads`]: crate::unit_of_work::Loads
pub struct Table<R: Record> {
    rows: BTreeMap<R::Key, (R, RowState)>,
    /// The keys that were requested; `None` without a database: then a key without a row has none.
    requested: Option<BTreeSet<R::Key>>,
    changes: Changes,
}

/// How often rows of a batch were changed. Its tables share it.
#[derive(Clone, Default)]
pub(crate) struct Changes(Arc<AtomicU64>);

impl Changes {
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum RowState {
    Clean,
    Dirty,
    New,
}

impl RowState {
    /// A row that is new stays so, however often it is changed.
    fn mark_dirty(&mut self) {
        if *self == RowState::Clean {
            *self = RowState::Dirty;
        }
    }
}

impl<R: Record> Table<R> {
    pub(super) fn loaded(requested: BTreeSet<R::Key>, rows: Vec<R>, changes: Changes) -> Table<R> {
        let rows = rows.into_iter().map(|row| (row.key().clone(), (row, RowState::Clean)));
        Table { rows: rows.collect(), requested: Some(requested), changes }
    }

    /// The row of a key, if there is one.
    ///
    /// # Panics
    /// If it was not requested.
    pub fn get<Q: Ord + Debug + ?Sized>(&self, key: &Q) -> Option<&R>
    where
        R::Key: Borrow<Q>,
    {
        self.assert_requested(key);
        self.rows.get(key).map(|(row, _)| row)
    }

    /// The row of a key for a change in place, if there is one.
    ///
    /// A call counts as a change: the row is written back even if nothing is assigned. A command that may still
    /// refuse uses [`Table::get`] first, since a refusal after a change is answered with 500.
    ///
    /// # Panics
    /// If it was not requested.
    pub fn get_mut<Q: Ord + Debug + ?Sized>(&mut self, key: &Q) -> Option<&mut R>
    where
        R::Key: Borrow<Q>,
    {
        self.assert_requested(key);
        let (row, state) = self.rows.get_mut(key)?;
        self.changes.increment();
        state.mark_dirty();
        Some(row)
    }

    /// Adds a row, or replaces the row with its key.
    ///
    /// # Panics
    /// If it was not requested.
    pub fn put(&mut self, row: R) {
        self.assert_requested(row.key());
        self.changes.increment();
        match self.rows.entry(row.key().clone()) {
            Entry::Vacant(place) => drop(place.insert((row, RowState::New))),
            Entry::Occupied(mut place) => {
                let (there, state) = place.get_mut();
                *there = row;
                state.mark_dirty();
            }
        }
    }

    fn assert_requested<Q: Ord + Debug + ?Sized>(&self, key: &Q)
    where
        R::Key: Borrow<Q>,
    {
        let is_requested = self.requested.as_ref().is_none_or(|asked| asked.contains(key));
        assert!(is_requested, "{key:?} was not requested: the batch's `Loads` must name it");
    }

    /// All rows, by key.
    pub fn iter(&self) -> impl Iterator<Item = &R> {
        self.rows.values().map(|(row, _)| row)
    }

    /// The rows that are new or were changed, by key.
    pub fn changed_rows(&self) -> Vec<&R> {
        self.rows.values().filter(|(_, f)| *f != RowState::Clean).map(|(row, _)| row).collect()
    }

    fn in_state(&self, state: RowState) -> Vec<&R> {
        self.rows.values().filter(|(_, f)| *f == state).map(|(row, _)| row).collect()
    }
}

impl WriteBatch<'_> {
    /// Updates the rows of a table that were changed, and inserts those that are new.
    pub fn save<R: Record>(&mut self, table: &Table<R>) -> &mut Self {
        self.update_all(&table.in_state(RowState::Dirty));
        self.insert_all(table.in_state(RowState::New))
    }
}

/// Empty, with every key allowed: for rows that come from no database.
impl<R: Record> Default for Table<R> {
    fn default() -> Self {
        Table { rows: BTreeMap::new(), requested: None, changes: Changes::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::panics::catch_panic;

    #[derive(Debug, PartialEq, derive::Record)]
    #[record(table = "numbers", key = "id")]
    struct Number {
        id: i32,
        value: i32,
    }

    fn number(id: i32) -> Number {
        Number { id, value: id }
    }

    fn loaded(requested: BTreeSet<i32>, rows: Vec<Number>) -> Table<Number> {
        Table::loaded(requested, rows, Changes::default())
    }

    fn values(rows: Vec<&Number>) -> Vec<i32> {
        rows.iter().map(|row| row.value).collect()
    }

    #[test]
    fn a_loaded_row_is_updated_when_it_changes_and_a_new_one_is_inserted_however_often_it_does() {
        let mut table = loaded((1..=6).collect(), vec![number(1), number(2), number(3)]);
        table.get_mut(&1).unwrap().value = 11;
        table.put(Number { id: 2, value: 12 });
        table.put(number(4));
        table.get_mut(&4).unwrap().value = 14;
        table.put(number(5));
        table.put(Number { id: 5, value: 15 });
        assert_eq!(table.get_mut(&6), None);
        assert_eq!(values(table.in_state(RowState::Dirty)), [11, 12]);
        assert_eq!(values(table.in_state(RowState::New)), [14, 15]);
        assert_eq!(values(table.changed_rows()), [11, 12, 14, 15]);
        assert_eq!(values(table.iter().collect()), [11, 12, 3, 14, 15]);
    }

    #[test]
    fn a_row_that_was_not_requested_is_not_taken_for_a_missing_one() {
        let table = || loaded([1, 2].into(), vec![number(1)]);
        assert_eq!((table().get(&1), table().get(&2)), (Some(&number(1)), None));
        let message = "3 was not requested: the batch's `Loads` must name it".to_string();
        assert_eq!(catch_panic(|| table().get(&3).is_some()), Err(message.clone()));
        assert_eq!(catch_panic(|| table().get_mut(&3).is_some()), Err(message.clone()));
        assert_eq!(catch_panic(|| table().put(number(3))), Err(message));
        assert_eq!(Table::<Number>::default().get(&3), None, "an empty table allows every key");
    }
}
