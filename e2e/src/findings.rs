//! What the checker finds to be off, by kind: all of it is counted, the first few are shown.

use std::collections::BTreeMap;

/// Violations shown of one kind; all are counted.
const SHOWN_MAX: usize = 20;

/// What is off, by kind.
#[derive(Debug, Default)]
pub struct Findings {
    kinds: BTreeMap<&'static str, (u64, Vec<String>)>,
}

impl Findings {
    pub fn add(&mut self, kind: &'static str, what: impl FnOnce() -> String) {
        let (count, shown) = self.kinds.entry(kind).or_default();
        *count += 1;
        if shown.len() < SHOWN_MAX {
            shown.push(what());
        }
    }

    pub fn unless(&mut self, holds: bool, kind: &'static str, what: impl FnOnce() -> String) {
        if !holds {
            self.add(kind, what);
        }
    }

    pub fn count(&self) -> u64 {
        self.kinds.values().map(|(count, _)| count).sum()
    }

    /// Kind, how many, and the first few.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64, &[String])> {
        self.kinds.iter().map(|(kind, (count, shown))| (*kind, *count, shown.as_slice()))
    }

    pub fn kinds(&self) -> Vec<&'static str> {
        self.kinds.keys().copied().collect()
    }
}
