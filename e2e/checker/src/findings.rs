//! Violations by invariant and kind. All of them are counted, and the first few of each kind are
//! shown.

use std::collections::{BTreeMap, BTreeSet};

use crate::format::group_digits;
use crate::invariants::InvariantName;

/// Violations of one kind that are shown.
const SHOWN_MAX: usize = 20;

/// Violations, by invariant and kind.
#[derive(Clone, Debug)]
pub struct Findings<I> {
    kinds: BTreeMap<(I, &'static str), (u64, Vec<String>)>,
}

impl<I> Default for Findings<I> {
    fn default() -> Findings<I> {
        Findings { kinds: BTreeMap::new() }
    }
}

impl<I: InvariantName> Findings<I> {
    /// Counts a violation of an invariant. Its text is only made if it is shown.
    pub fn add(
        &mut self,
        violates: impl Into<I>,
        kind: &'static str,
        what: impl FnOnce() -> String,
    ) {
        let (count, shown) = self.kinds.entry((violates.into(), kind)).or_default();
        *count += 1;
        if shown.len() < SHOWN_MAX {
            shown.push(what());
        }
    }

    /// Counts a violation, unless what the invariant requires holds.
    pub fn unless(
        &mut self,
        holds: bool,
        violates: impl Into<I>,
        kind: &'static str,
        what: impl FnOnce() -> String,
    ) {
        if !holds {
            self.add(violates, kind, what);
        }
    }

    /// Adds the findings of another check.
    pub fn merge(&mut self, others: &Findings<I>) {
        for (kind, (count, shown)) in &others.kinds {
            let (all, own) = self.kinds.entry(*kind).or_default();
            *all += count;
            let room = SHOWN_MAX.saturating_sub(own.len());
            own.extend(shown.iter().take(room).cloned());
        }
    }

    /// The number of violations.
    pub fn count(&self) -> u64 {
        self.kinds.values().map(|(count, _)| count).sum()
    }

    /// Whether there is no violation.
    pub fn is_empty(&self) -> bool {
        self.kinds.is_empty()
    }

    /// Each kind with its invariant, its number and the violations shown.
    pub fn iter(&self) -> impl Iterator<Item = (I, &'static str, u64, &[String])> {
        let each = self.kinds.iter();
        each.map(|((violates, kind), (count, shown))| (*violates, *kind, *count, shown.as_slice()))
    }

    /// The kinds, each with its invariant, such as `Published lost`.
    pub fn kinds(&self) -> Vec<String> {
        self.kinds.keys().map(|(violates, kind)| format!("{violates} {kind}")).collect()
    }

    /// The violated invariants.
    pub fn violated(&self) -> BTreeSet<I> {
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
    use crate::invariants::MessagingInvariant::Published;

    #[test]
    fn of_each_kind_the_first_twenty_are_shown_and_all_are_counted() {
        let mut findings = Findings::default();
        (0..30).for_each(|nth| findings.add(Published, "lost", || nth.to_string()));
        let (violated, kind, count, shown) = findings.iter().next().unwrap();
        assert_eq!((violated, kind, count, shown.len()), (Published, "lost", 30, 20));
        let mut both = Findings::default();
        both.merge(&findings);
        both.merge(&findings);
        assert_eq!((both.count(), both.kinds()), (60, vec!["Published lost".to_string()]));
        let (_, _, _, shown) = both.iter().next().unwrap();
        assert_eq!(shown.len(), 20);
    }
}
