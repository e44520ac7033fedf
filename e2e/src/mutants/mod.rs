//! Mutation testing: bugs, one at a time, each put into a worktree of the checkout. The
//! suite detects every one of them by the invariant that is meant for it, and finds nothing in the
//! code without them. A patch that no longer applies breaks this, and so does a trial that reports
//! a finding without a mutant.

pub mod disturbance;
pub mod list;
pub mod run;
pub mod worktree;
