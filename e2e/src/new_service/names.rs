//! Checks the name of a new service, and that the checkout has no uncommitted changes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

pub fn read_file(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

/// The one declaration of the services.
pub const SERVICE_LIST: &str = "services/list.rs";

/// The services that a checkout declares. Those of this program are `stack_description::SERVICES`.
pub fn services(root: &Path) -> Result<Vec<String>> {
    let list = read_file(&root.join(SERVICE_LIST))?;
    Ok(list.split('"').skip(1).step_by(2).map(str::to_string).collect())
}

/// The service whose containers and manifests a new service copies.
pub const COPIED: &str = "stock";

const NAME_CHARS_MAX: usize = 30;

/// Words with another meaning in Rust, cargo, SQL or the stack. Names of crates and of modules are looked up.
const RESERVED_NAMES: &str = "
    abstract alloc api as async authority await become bin box break build chassis checker connect console const
    continue contracts core crate deps derive do dyn else enum examples extern false faults final fn for gen if impl
    in incremental jaeger java kafka launcher let loop macro main match mod move mut none observer override postgres
    priv pub public ref registry return seed self stack static std struct super template0 template1 test testing
    tests trait true try type typeof unsafe use where while yield";

pub fn check_name(root: &Path, name: &str) -> Result<()> {
    check_word(name)?;
    let folder = root.join("services").join(name);
    ensure!(!folder.exists(), "service {name} already exists, in {}", folder.display());
    let is_crate = is_package(&read_file(&root.join("Cargo.lock"))?, name);
    // A name in which that of the copied service stands would be renamed with it.
    ensure!(!is_crate && !name.contains(COPIED), "`{name}` {ANOTHER_MEANING}");
    Ok(())
}

pub const ANOTHER_MEANING: &str = "already has another meaning here: choose another name";

/// Whether a package of a `Cargo.lock` has this name.
fn is_package(lockfile: &str, name: &str) -> bool {
    lockfile.contains(&format!("\nname = \"{name}\"\n"))
}

/// Checks the name of a service, in this checkout or in a repository of its own: that it is one word, and that no part
/// of a stack, no word of Rust or cargo, and no crate that others publish has it.
pub fn check_word(name: &str) -> Result<()> {
    let is_word = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.len() <= NAME_CHARS_MAX;
    ensure!(
        is_word,
        "`{name}` cannot be a service's name: one word of lower-case letters and digits, at most {NAME_CHARS_MAX}"
    );
    let published = include_str!("../../../Cargo.lock").split("\n[[package]]");
    let mut published = published.filter(|package| package.contains("\nsource = "));
    let is_taken = RESERVED_NAMES.split_whitespace().any(|reserved| reserved == name)
        || published.any(|package| is_package(package, name));
    ensure!(!is_taken, "`{name}` {ANOTHER_MEANING}");
    Ok(())
}

/// The command git without what it would inherit: in a hook, `GIT_DIR` names another repository.
pub fn git() -> Command {
    let mut git = Command::new("git");
    for (name, _) in std::env::vars_os() {
        if name.as_encoded_bytes().starts_with(b"GIT_") {
            git.env_remove(name);
        }
    }
    git
}

/// The new service must be visible in git, and removable, separately from other changes.
pub fn check_clean(root: &Path) -> Result<()> {
    if !root.join(".git").exists() {
        return Ok(());
    }
    let status = git().args(["status", "--porcelain"]).current_dir(root).output();
    let status = status.context("git cannot be started")?;
    let changed = String::from_utf8_lossy(&status.stdout);
    ensure!(
        status.status.success(),
        "`git status` failed: {}",
        String::from_utf8_lossy(&status.stderr)
    );
    if let Some(first) = changed.lines().next() {
        bail!(
            "the checkout has uncommitted changes, such as {}: commit or stash them first, so \
             that `git stash -u` can undo this command",
            first.get(3..).unwrap_or_default()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stack_description::checkout;

    #[test]
    fn an_invalid_or_reserved_name_is_refused_with_a_reason() {
        let root = checkout();
        for name in ["", "Loyalty", "cold storage", "cold_storage", "7up", "é", &"x".repeat(31)] {
            let refused = check_name(&root, name).unwrap_err().to_string();
            assert!(refused.contains("one word of lower-case letters"), "{refused}");
        }
        let names =
            ["match", "kafka", "registry", "chassis", "events", "tokio", "std", "stockroom"];
        for name in names {
            let refused = check_name(&root, name).unwrap_err().to_string();
            assert!(refused.contains("already has another meaning"), "{name}: {refused}");
        }
        let refused = check_name(&root, "stock").unwrap_err().to_string();
        assert!(refused.contains("service stock already exists"), "{refused}");
        check_name(&root, "a2").unwrap();
    }
}
