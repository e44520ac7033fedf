//! Checks the name of a new service, and that the checkout has no uncommitted changes.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

pub fn read_file(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

const NAME_CHARS_MAX: usize = 30;

/// Words with another meaning in Rust, SQL or the stack. Names of crates and of test modules are
/// looked up.
const RESERVED_NAMES: [&str; 73] = [
    "abstract",
    "alloc",
    "api",
    "as",
    "async",
    "await",
    "become",
    "bin",
    "box",
    "break",
    "chassis",
    "checker",
    "console",
    "const",
    "continue",
    "contracts",
    "core",
    "crate",
    "derive",
    "do",
    "dyn",
    "else",
    "enum",
    "extern",
    "false",
    "faults",
    "final",
    "fn",
    "for",
    "gen",
    "if",
    "impl",
    "in",
    "java",
    "kafka",
    "launcher",
    "let",
    "loop",
    "macro",
    "main",
    "match",
    "mod",
    "move",
    "mut",
    "none",
    "override",
    "postgres",
    "priv",
    "public",
    "pub",
    "ref",
    "registry",
    "return",
    "self",
    "static",
    "std",
    "struct",
    "super",
    "template0",
    "template1",
    "test",
    "testing",
    "tests",
    "trait",
    "true",
    "try",
    "type",
    "typeof",
    "unsafe",
    "use",
    "where",
    "while",
    "yield",
];

pub fn check_name(root: &Path, name: &str) -> Result<()> {
    check_word(name)?;
    let folder = root.join("services").join(name);
    ensure!(!folder.exists(), "service {name} already exists, in {}", folder.display());
    let is_crate = read_file(&root.join("Cargo.lock"))?.contains(&format!("\nname = \"{name}\"\n"));
    let is_module = read_file(&root.join("e2e/tests/main.rs"))?.contains(&format!("mod {name};"));
    ensure!(!is_crate && !is_module, "`{name}` {ANOTHER_MEANING}");
    Ok(())
}

const ANOTHER_MEANING: &str = "already has another meaning here: choose another name";

/// Checks that a name is one word, and that no part of a stack and no word of Rust has it.
pub fn check_word(name: &str) -> Result<()> {
    let is_word = name.starts_with(|first: char| first.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit())
        && name.len() <= NAME_CHARS_MAX;
    ensure!(
        is_word,
        "`{name}` cannot be a service's name: one word of lower-case letters and digits, at most {NAME_CHARS_MAX}"
    );
    ensure!(!RESERVED_NAMES.contains(&name), "`{name}` {ANOTHER_MEANING}");
    Ok(())
}

/// The new service must be visible in git, and removable, separately from other changes.
pub fn check_clean(root: &Path) -> Result<()> {
    if !root.join(".git").exists() {
        return Ok(());
    }
    let status = Command::new("git").args(["status", "--porcelain"]).current_dir(root).output()?;
    let changed = String::from_utf8_lossy(&status.stdout);
    if let Some(first) = changed.lines().next() {
        bail!(
            "the checkout has uncommitted changes, such as {}: commit or stash them first, so \
             that what is written now stands alone (and `git stash -u` takes it back)",
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
        for name in ["", "Shipping", "cold storage", "cold_storage", "7up", "é", &"x".repeat(31)] {
            let refused = check_name(&root, name).unwrap_err().to_string();
            assert!(refused.contains("one word of lower-case letters"), "{refused}");
        }
        for name in
            ["match", "kafka", "registry", "chassis", "events", "tokio", "saga", "std", "tests"]
        {
            let refused = check_name(&root, name).unwrap_err().to_string();
            assert!(refused.contains("already has another meaning"), "{name}: {refused}");
        }
        let refused = check_name(&root, "stock").unwrap_err().to_string();
        assert!(refused.contains("service stock already exists"), "{refused}");
        check_name(&root, "a2").unwrap();
    }
}
