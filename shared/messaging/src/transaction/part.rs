//! A part of a batch, and how it is split into smaller ones.

use tokio::time::Instant;

/// A part of a batch, which shares a transaction.
pub(crate) struct Part<T> {
    pub items: Vec<T>,
    /// The attempts for its items, those as a part of larger parts included.
    pub attempts: Attempts,
    /// How often another transaction wrote the same keys at the same moment.
    pub races: u32,
}

/// The number of attempts for the items of a part, and the time since the first.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempts {
    pub count: u32,
    pub started_at: Instant,
    pub deferrals: u32,
}

impl<T> Part<T> {
    pub fn new(items: Vec<T>) -> Part<T> {
        let attempts = Attempts { count: 0, started_at: Instant::now(), deferrals: 0 };
        Part { items, attempts, races: 0 }
    }

    /// Its items, each by itself.
    pub fn singles(self) -> impl Iterator<Item = Part<T>> {
        let count = self.items.len();
        self.split(0..count)
    }

    pub fn halves(self) -> impl Iterator<Item = Part<T>> {
        let half = self.items.len() / 2;
        self.split([0, half])
    }

    /// The items before this one, this one alone, and the items after it.
    pub fn isolate(self, nth: usize) -> impl Iterator<Item = Part<T>> {
        self.split([0, nth, nth + 1])
    }

    /// Its parts, which begin at these indices, from right to left: a loop that pushes them pops the left one first.
    fn split(
        self,
        at: impl IntoIterator<Item = usize, IntoIter: DoubleEndedIterator>,
    ) -> impl Iterator<Item = Part<T>> {
        let Part { mut items, attempts, .. } = self;
        let parts = at.into_iter().rev().map(move |at| items.split_off(at));
        let parts = parts.filter(|items| !items.is_empty());
        parts.map(move |items| Part { items, attempts, races: 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_split_from_right_to_left_without_an_empty_part() {
        fn items(parts: impl Iterator<Item = Part<usize>>) -> Vec<Vec<usize>> {
            let parts = parts.inspect(|part| assert_eq!((part.attempts.count, part.races), (7, 0)));
            parts.map(|part| part.items).collect()
        }
        let part = |count| {
            let mut part = Part::new(Vec::from_iter(0..count));
            (part.attempts.count, part.races) = (7, 1);
            part
        };
        assert_eq!(items(part(3).singles()), [[2], [1], [0]]);
        assert_eq!(items(part(0).singles()).len(), 0);
        assert_eq!(items(part(5).halves()), [vec![2, 3, 4], vec![0, 1]]);
        assert_eq!(items(part(4).isolate(0)), [vec![1, 2, 3], vec![0]]);
        assert_eq!(items(part(4).isolate(1)), [vec![2, 3], vec![1], vec![0]]);
        assert_eq!(items(part(4).isolate(3)), [vec![3], vec![0, 1, 2]]);
    }
}
