//! What is found to be off, by invariant and kind: all of it is counted, the first few are shown.

use std::collections::{BTreeMap, BTreeSet};

use crate::figures::grouped;
use crate::invariants::Invariant;

/// Violations shown of one kind; all are counted.
const SHOWN_MAX: usize = 20;

/// What is off, by the invariant that it violates, and by kind.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    kinds: BTreeMap<(Invariant, &'static str), (u64, Vec<String>)>,
}

impl Findings {
    pub fn add(&mut self, violates: Invariant, kind: &'static str, what: impl FnOnce() -> String) {
        let (count, shown) = self.kinds.entry((violates, kind)).or_default();
        *count += 1;
        if shown.len() < SHOWN_MAX {
            shown.push(what());
        }
    }

    pub fn unless(
        &mut self,
        holds: bool,
        violates: Invariant,
        kind: &'static str,
        what: impl FnOnce() -> String,
    ) {
        if !holds {
            self.add(violates, kind, what);
        }
    }

    /// Takes in what was found elsewhere.
    pub fn join(&mut self, others: &Findings) {
        for (kind, (count, shown)) in &others.kinds {
            let (all, own) = self.kinds.entry(*kind).or_default();
            *all += count;
            let room = SHOWN_MAX.saturating_sub(own.len());
            own.extend(shown.iter().take(room).cloned());
        }
    }

    pub fn count(&self) -> u64 {
        self.kinds.values().map(|(count, _)| count).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Invariant, kind, how many, and the first few.
    pub fn iter(&self) -> impl Iterator<Item = (Invariant, &'static str, u64, &[String])> {
        let each = self.kinds.iter();
        each.map(|((violates, kind), (count, shown))| (*violates, *kind, *count, shown.as_slice()))
    }

    /// `I8 lost`, and so on.
    pub fn kinds(&self) -> Vec<String> {
        self.kinds.keys().map(|(violates, kind)| format!("{violates} {kind}")).collect()
    }

    pub fn violated(&self) -> BTreeSet<Invariant> {
        self.kinds.keys().map(|(violates, _)| *violates).collect()
    }

    /// For people.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (violates, kind, count, shown) in self.iter() {
            lines.push(format!("  VIOLATED: {violates} {kind}: {} times", grouped(count)));
            lines.extend(shown.iter().map(|what| format!("    {what}")));
            if count > shown.len() as u64 {
                lines.push(format!("    and {} more", grouped(count - shown.len() as u64)));
            }
        }
        for violated in self.violated() {
            lines.push(format!("  {violated} is: {}", violated.means()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::Invariant::I8;

    #[test]
    fn of_each_kind_the_first_twenty_are_shown_and_all_are_counted() {
        let mut findings = Findings::default();
        (0..30).for_each(|nth| findings.add(I8, "lost", || nth.to_string()));
        let (violated, kind, count, shown) = findings.iter().next().unwrap();
        assert_eq!((violated, kind, count, shown.len()), (I8, "lost", 30, 20));
        let mut both = Findings::default();
        both.join(&findings);
        both.join(&findings);
        assert_eq!((both.count(), both.kinds()), (60, vec!["I8 lost".to_string()]));
        let (_, _, _, shown) = both.iter().next().unwrap();
        assert_eq!(shown.len(), 20);
    }
}
