//! The variables of the environment that the launcher reads. An empty variable counts as unset.

use std::env;
use std::path::PathBuf;

/// The value of a variable.
pub fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// The path that a variable has.
pub fn path(name: &str) -> Option<PathBuf> {
    env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

/// Whether a variable is `1` or `true`.
pub fn is_on(name: &str) -> bool {
    variable(name).is_some_and(|value| ["1", "true"].contains(&value.as_str()))
}

/// The words of a variable, such as options of a program.
pub fn words(name: &str, default: &str) -> Vec<String> {
    let text = variable(name).unwrap_or_else(|| default.to_string());
    text.split_whitespace().map(String::from).collect()
}

/// Whether the variable `SECURE` asks for a secured stack: it is `1` or `true`.
pub fn secure_from_environment() -> bool {
    is_on("SECURE")
}
