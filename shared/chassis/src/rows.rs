//! The rows that one batch touches, in memory, and the two traits that say how a service loads and
//! saves them. Everything that writes does it the same way, whether the work came from Kafka or
//! from HTTP: load what is touched, decide with pure functions, save what changed, commit.

use std::borrow::Borrow;
use std::cell::Cell;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind};

use sqlx::PgConnection;

use crate::writes::Writes;

/// The rows of one batch.
pub trait Rows: Sized + Send + 'static {
    /// Which rows a batch touches; handlers' and commands' [`Touches`] fill it in.
    type Keys: Default + Send;

    /// Reads every row that the keys name, one statement a table, locked for update where a decision
    /// may change it.
    ///
    /// Rows are locked in the order of their keys, and tables in the same order everywhere: two
    /// transactions that touch the same rows then wait for one another and never in a circle.
    fn load(
        tx: &mut PgConnection,
        keys: Self::Keys,
    ) -> impl Future<Output = sqlx::Result<Self>> + Send;

    /// Writes what changed, one statement a table, inserts sorted like the locks.
    fn save(&self, writes: &mut Writes<'_>);
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

thread_local! {
    static CHANGES: Cell<u64> = const { Cell::new(0) };
}

/// How many changes of rows this thread has made: a decision that is refused may have made none.
pub(crate) fn changes() -> u64 {
    CHANGES.get()
}

/// The rows of one table that a batch touches, by key, with what is to become of each in the
/// database. Sorted, so that inserts wait for one another in one direction, like locks.
///
/// The key is the table's primary key, or another that is unique there: a row that is not there can't be
/// locked, and that constraint alone keeps two transactions from both inserting it.
///
/// A row that was not looked for must not be taken for one that is not there. So a key that no
/// [`Touches`] of the batch has named can't be used, and a decision that tries to panics: its event
/// becomes a dead letter, its command is answered with 500.
pub struct Table<K, T> {
    rows: BTreeMap<K, (T, Fate)>,
    /// Which keys were looked for; without a database all of them, and what isn't in `rows` isn't there.
    asked: Option<BTreeSet<K>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Keep,
    Update,
    Insert,
}

impl Fate {
    /// A row that is new stays so, however often it is changed.
    fn changed(&mut self) {
        if *self == Fate::Keep {
            *self = Fate::Update;
        }
    }
}

impl<K: Ord + Debug, T> Table<K, T> {
    /// Rows as they were just read, of those that were looked for.
    pub fn read(asked: BTreeSet<K>, rows: Vec<T>, key: impl Fn(&T) -> K) -> Table<K, T> {
        let rows = rows.into_iter().map(|row| (key(&row), (row, Fate::Keep))).collect();
        Table { rows, asked: Some(asked) }
    }

    /// The row of a key, if there is one.
    ///
    /// # Panics
    /// If it was not looked for.
    pub fn get<Q: Ord + Debug + ?Sized>(&self, key: &Q) -> Option<&T>
    where
        K: Borrow<Q>,
    {
        self.is_asked(key);
        self.rows.get(key).map(|(row, _)| row)
    }

    /// The row of a key, to be changed in its place, if there is one.
    ///
    /// To call this counts as a change: the row is written back even if nothing is assigned. A
    /// command that may still refuse looks with [`Table::get`] first, since a refusal after a
    /// change is answered 500.
    ///
    /// # Panics
    /// If it was not looked for.
    pub fn change<Q: Ord + Debug + ?Sized>(&mut self, key: &Q) -> Option<&mut T>
    where
        K: Borrow<Q>,
    {
        self.is_asked(key);
        let (row, fate) = self.rows.get_mut(key)?;
        CHANGES.set(CHANGES.get() + 1);
        fate.changed();
        Some(row)
    }

    /// Adds a row, or puts it in the place of the one that was there.
    ///
    /// # Panics
    /// If it was not looked for.
    pub fn put(&mut self, key: K, row: T) {
        self.is_asked(&key);
        CHANGES.set(CHANGES.get() + 1);
        match self.rows.entry(key) {
            Entry::Vacant(place) => drop(place.insert((row, Fate::Insert))),
            Entry::Occupied(mut place) => {
                let (there, fate) = place.get_mut();
                *there = row;
                fate.changed();
            }
        }
    }

    fn is_asked<Q: Ord + Debug + ?Sized>(&self, key: &Q)
    where
        K: Borrow<Q>,
    {
        let asked = self.asked.as_ref().is_none_or(|asked| asked.contains(key));
        assert!(asked, "{key:?} was not looked for: the batch's `Touches` have to name it");
    }

    /// All rows, by key.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.rows.values().map(|(row, _)| row)
    }

    /// Rows to be updated, by key.
    pub fn updated(&self) -> Vec<&T> {
        self.with(Fate::Update)
    }

    /// Rows to be inserted, by key.
    pub fn inserted(&self) -> Vec<&T> {
        self.with(Fate::Insert)
    }

    fn with(&self, fate: Fate) -> Vec<&T> {
        self.rows.values().filter(|(_, f)| *f == fate).map(|(row, _)| row).collect()
    }
}

/// Empty, with every key allowed: for rows that come from no database.
impl<K, T> Default for Table<K, T> {
    fn default() -> Self {
        Table { rows: BTreeMap::new(), asked: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_read_is_updated_when_it_changes_and_what_is_new_is_inserted_however_often_it_does()
    {
        let mut table = Table::read((1..=6).collect(), vec![1, 2, 3], |number| *number);
        *table.change(&1).unwrap() += 10;
        table.put(2, 12);
        table.put(4, 4);
        *table.change(&4).unwrap() += 10;
        table.put(5, 5);
        table.put(5, 15);
        assert_eq!(table.change(&6), None);
        assert_eq!((table.updated(), table.inserted()), (vec![&11, &12], vec![&14, &15]));
        assert_eq!(Vec::from_iter(table.iter()), [&11, &12, &3, &14, &15]);
    }
    #[test]
    fn a_row_that_was_not_looked_for_is_not_taken_for_one_that_is_not_there() {
        let table = || Table::read([1, 2].into(), vec![1], |number| *number);
        assert_eq!((table().get(&1), table().get(&2)), (Some(&1), None));
        let unasked = "3 was not looked for: the batch's `Touches` have to name it".to_string();
        assert_eq!(guarded(|| table().get(&3).copied()), Err(unasked.clone()));
        assert_eq!(guarded(|| table().change(&3).copied()), Err(unasked.clone()));
        assert_eq!(guarded(|| table().put(3, 3)), Err(unasked));
        assert_eq!(Table::<i32, i32>::default().get(&3), None, "this one is whole");
    }
}
