//! Mutation testing: sixteen bugs, one at a time, each put into a worktree of the checkout. The promise is that
//! the suite detects every one of them, by the invariant that is meant for it, and finds nothing in the code
//! without them. A patch that no longer applies breaks it, and so does a trial that finds something where there
//! is nothing.

pub mod list;
pub mod run;
pub mod trial;
pub mod worktree;
