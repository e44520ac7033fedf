//! The findings of this checker: those of messaging and those of orders, by the invariants I1 to I17.

use crate::checker::invariants::Invariant;

/// Violations, by invariant and kind.
pub type Findings = checker::Findings<Invariant>;
