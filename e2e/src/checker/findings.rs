//! Violations by invariant and kind. All of them are counted, and the first few of each kind are
//! shown.

use std::collections::{BTreeMap, BTreeSet};

use crate::checker::invariants::Invariant;
use crate::format::group_digits;

/// Violations of one kind that are shown.
const SHOWN_MAX: usize = 20;

/// Violations, by invariant and kind.
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

    /// Adds the findings of another check.
    pub fn merge(&mut self, others: &Findings) {
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

    /// Each kind with its invariant, its number and the violations shown.
    pub fn iter(&self) -> impl Iterator<Item = (Invariant, &'static str, u64, &[String])> {
        let each = self.kinds.iter();
        each.map(|((violates, kind), (count, shown))| (*violates, *kind, *count, shown.as_slice()))
    }

    /// The kinds, such as `I8 lost`.
    pub fn kinds(&self) -> Vec<String> {
        self.kinds.keys().map(|(violates, kind)| format!("{violates} {kind}")).collect()
    }

    pub fn violated(&self) -> BTreeSet<Invariant> {
        self.kinds.keys().map(|(violates, _)| *violates).collect()
    }

    /// The report of the findings, line by line.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (violates, kind, count, shown) in self.iter() {
            lines.push(format!("  VIOLATED: {violates} {kind}: {} times", group_digits(count)));
            lines.extend(shown.iter().map(|what| format!("    {what}")));
            if count > shown.len() as u64 {
                lines.push(format!("    and {} more", group_digits(count - shown.len() as u64)));
            }
        }
        for violated in self.violated() {
            lines.push(format!("  {violated} is: {}", violated.description()));
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::invariants::Invariant::I8;

    #[test]
    fn of_each_kind_the_first_twenty_are_shown_and_all_are_counted() {
        let mut findings = Findings::default();
        (0..30).for_each(|nth| findings.add(I8, "lost", || nth.to_string()));
        let (violated, kind, count, shown) = findings.iter().next().unwrap();
        assert_eq!((violated, kind, count, shown.len()), (I8, "lost", 30, 20));
        let mut both = Findings::default();
        both.merge(&findings);
        both.merge(&findings);
        assert_eq!((both.count(), both.kinds()), (60, vec!["I8 lost".to_string()]));
        let (_, _, _, shown) = both.iter().next().unwrap();
        assert_eq!(shown.len(), 20);
    }
}
