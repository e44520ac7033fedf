//! The rows of one table that a batch touches: an identity map that knows which rows changed.

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

thread_local! {
    static CHANGE_COUNT: Cell<u64> = const { Cell::new(0) };
}

/// How many changes of rows this thread has made: a command that refuses must not have made any.
pub(crate) fn change_count() -> u64 {
    CHANGE_COUNT.get()
}

/// The rows of one table that a batch touches, by key, with what is to become of each in the
/// database. Sorted, so that inserts wait for one another in one direction, like locks.
///
/// The key is the table's primary key, or another that is unique there: a row that is not there can't be
/// locked, and that constraint alone keeps two transactions from both inserting it.
///
/// A row that was not requested must not be taken for a missing one. So a decision that uses a key which no
/// [`Loads`] of the batch has named panics: its event becomes a dead letter, its command gets a 500.
pub struct Table<K, T> {
    rows: BTreeMap<K, (T, RowState)>,
    /// The keys that were requested; `None` without a database: then a key without a row has none.
    requested: Option<BTreeSet<K>>,
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

impl<K: Ord + Debug, T> Table<K, T> {
    /// The rows that were just read for the requested keys.
    pub fn from_rows(requested: BTreeSet<K>, rows: Vec<T>, key: impl Fn(&T) -> K) -> Table<K, T> {
        let rows = rows.into_iter().map(|row| (key(&row), (row, RowState::Clean))).collect();
        Table { rows, requested: Some(requested) }
    }

    /// The row of a key, if there is one.
    ///
    /// # Panics
    /// If it was not requested.
    pub fn get<Q: Ord + Debug + ?Sized>(&self, key: &Q) -> Option<&T>
    where
        K: Borrow<Q>,
    {
        self.assert_requested(key);
        self.rows.get(key).map(|(row, _)| row)
    }

    /// The row of a key, to be changed in its place, if there is one.
    ///
    /// A call counts as a change: the row is written back even if nothing is assigned. A command that may still
    /// refuse uses [`Table::get`] first, since a refusal after a change is answered with 500.
    ///
    /// # Panics
    /// If it was not requested.
    pub fn get_mut<Q: Ord + Debug + ?Sized>(&mut self, key: &Q) -> Option<&mut T>
    where
        K: Borrow<Q>,
    {
        self.assert_requested(key);
        let (row, fate) = self.rows.get_mut(key)?;
        CHANGE_COUNT.set(CHANGE_COUNT.get() + 1);
        fate.mark_dirty();
        Some(row)
    }

    /// Adds a row, or puts it in the place of the one that was there.
    ///
    /// # Panics
    /// If it was not requested.
    pub fn put(&mut self, key: K, row: T) {
        self.assert_requested(&key);
        CHANGE_COUNT.set(CHANGE_COUNT.get() + 1);
        match self.rows.entry(key) {
            Entry::Vacant(place) => drop(place.insert((row, RowState::New))),
            Entry::Occupied(mut place) => {
                let (there, fate) = place.get_mut();
                *there = row;
                fate.mark_dirty();
            }
        }
    }

    fn assert_requested<Q: Ord + Debug + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        let is_requested = self.requested.as_ref().is_none_or(|asked| asked.contains(key));
        assert!(is_requested, "{key:?} was not requested: the batch's `Loads` must name it");
    }

    /// All rows, by key.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.rows.values().map(|(row, _)| row)
    }

    /// Rows to be updated, by key.
    pub fn dirty_rows(&self) -> Vec<&T> {
        self.in_state(RowState::Dirty)
    }

    /// Rows to be inserted, by key.
    pub fn new_rows(&self) -> Vec<&T> {
        self.in_state(RowState::New)
    }

    fn in_state(&self, fate: RowState) -> Vec<&T> {
        self.rows.values().filter(|(_, f)| *f == fate).map(|(row, _)| row).collect()
    }
}

/// Empty, with every key allowed: for rows that come from no database.
impl<K, T> Default for Table<K, T> {
    fn default() -> Self {
        Table { rows: BTreeMap::new(), requested: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::panics::catch_panic;

    #[test]
    fn a_loaded_row_is_updated_when_it_changes_and_a_new_one_is_inserted_however_often_it_does() {
        let mut table = Table::from_rows((1..=6).collect(), vec![1, 2, 3], |number| *number);
        *table.get_mut(&1).unwrap() += 10;
        table.put(2, 12);
        table.put(4, 4);
        *table.get_mut(&4).unwrap() += 10;
        table.put(5, 5);
        table.put(5, 15);
        assert_eq!(table.get_mut(&6), None);
        assert_eq!((table.dirty_rows(), table.new_rows()), (vec![&11, &12], vec![&14, &15]));
        assert_eq!(Vec::from_iter(table.iter()), [&11, &12, &3, &14, &15]);
    }

    #[test]
    fn a_row_that_was_not_requested_is_not_taken_for_a_missing_one() {
        let table = || Table::from_rows([1, 2].into(), vec![1], |number| *number);
        assert_eq!((table().get(&1), table().get(&2)), (Some(&1), None));
        let message = "3 was not requested: the batch's `Loads` must name it".to_string();
        assert_eq!(catch_panic(|| table().get(&3).copied()), Err(message.clone()));
        assert_eq!(catch_panic(|| table().get_mut(&3).copied()), Err(message.clone()));
        assert_eq!(catch_panic(|| table().put(3, 3)), Err(message));
        assert_eq!(Table::<i32, i32>::default().get(&3), None, "this one is whole");
    }
}
