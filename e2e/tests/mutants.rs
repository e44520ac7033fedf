//! `make mutants` runs the mutants, which takes forty minutes. These tests only check that every
//! patch applies.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use e2e::mutants::list::{MUTANTS, patch_file};
use e2e::stack_description::checkout;

#[test]
fn every_mutant_applies_and_names_what_it_breaks_and_what_catches_it() -> Result<()> {
    let root = checkout();
    let folder = root.join("e2e/mutants/patches");
    let patches: BTreeSet<_> = std::fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    let listed: BTreeSet<_> = MUTANTS.iter().map(|bug| patch_file(&root, bug)).collect();
    assert_eq!(patches, listed);
    for bug in &MUTANTS {
        let patch = patch_file(&root, bug);
        let text = std::fs::read_to_string(&patch)?;
        let (head, _) = text.split_once("--- a/").context("a patch with a head")?;
        let id = format!("{}: ", bug.id);
        let catcher = format!("caught by {}", bug.violates);
        ensure!(head.starts_with(&id) && head.contains(&catcher), "{}: {head}", bug.id);
        let applies = Command::new("git")
            .args(["apply", "--check", "-C1"])
            .arg(&patch)
            .current_dir(&root)
            // A copy of the checkout may be inside another checkout's target.
            .env("GIT_CEILING_DIRECTORIES", root.parent().unwrap_or(&root))
            .output()?;
        let error = String::from_utf8_lossy(&applies.stderr).into_owned();
        ensure!(applies.status.success(), "{} does not apply any more: {error}", bug.id);
    }
    Ok(())
}
