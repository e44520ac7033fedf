//! The result of a check.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

/// Violations of one kind that are shown.
const SHOWN_MAX: usize = 20;

/// What was read, and every violation. It is displayed as lines for people.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// The number of records in all topics.
    pub records: u64,
    /// How many of them are duplicates of another record.
    pub duplicates: u64,
    /// By kind: how often it was found, and the first of them.
    violations: BTreeMap<&'static str, (u64, Vec<String>)>,
}

impl Verdict {
    /// Whether there is no violation.
    pub fn holds(&self) -> bool {
        self.violations.is_empty()
    }

    /// The kinds of the violations, such as `never handled`, each with its number.
    pub fn kinds(&self) -> Vec<(&'static str, u64)> {
        self.violations.iter().map(|(kind, (count, _))| (*kind, *count)).collect()
    }

    pub(crate) fn add(&mut self, kind: &'static str, what: impl FnOnce() -> String) {
        let (count, shown) = self.violations.entry(kind).or_default();
        *count += 1;
        if shown.len() < SHOWN_MAX {
            shown.push(what());
        }
    }
}

impl Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(out, "{} records, {} of them duplicates", self.records, self.duplicates)?;
        for (kind, (count, shown)) in &self.violations {
            writeln!(out, "VIOLATED: {kind}: {count} times")?;
            shown.iter().try_for_each(|what| writeln!(out, "  {what}"))?;
        }
        if self.holds() { writeln!(out, "everything holds") } else { Ok(()) }
    }
}
