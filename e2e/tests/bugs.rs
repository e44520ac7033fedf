//! The seeded bugs themselves run by `make bugs`, which takes forty minutes; here, that they can.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::bugs::{BUGS, patch};
use e2e::template::checkout;

#[test]
fn every_seeded_bug_applies_to_the_tree_and_says_what_it_breaks_and_what_catches_it() -> Result<()>
{
    let root = checkout()?;
    let folder = root.join("e2e/bugs");
    let lying: BTreeSet<_> = std::fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    let listed: BTreeSet<_> = BUGS.iter().map(|bug| patch(&root, bug)).collect();
    assert_eq!(lying, listed);
    for bug in &BUGS {
        let patch = patch(&root, bug);
        let text = std::fs::read_to_string(&patch)?;
        let (head, _) = text.split_once("--- a/").context("a patch with a head")?;
        let id = format!("{}: ", bug.id);
        let catcher = format!("caught by {}", bug.violates);
        ensure!(head.starts_with(&id) && head.contains(&catcher), "{}: {head}", bug.id);
        let applies = Command::new("git")
            .args(["apply", "--check", "-C1"])
            .arg(&patch)
            .current_dir(&root)
            // A copy of the checkout may lie in another one's target.
            .env("GIT_CEILING_DIRECTORIES", root.parent().unwrap_or(&root))
            .output()?;
        let because = String::from_utf8_lossy(&applies.stderr).into_owned();
        ensure!(applies.status.success(), "{} does not apply any more: {because}", bug.id);
    }
    Ok(())
}
