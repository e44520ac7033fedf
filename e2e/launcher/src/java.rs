//! Which Java runs, and with which options.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// Enough for a quick start; a benchmark sets a larger heap and the second compiler.
const DEFAULT_JAVA_OPTIONS: &str = "-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1";

/// The Java to run, with links followed: Debian's `java` is a link to a link.
pub(crate) fn find_java() -> Result<PathBuf> {
    let home = std::env::var_os("JAVA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut places = home.into_iter().chain(std::env::split_paths(&path));
    let java = places.find_map(|place| fs::canonicalize(place.join("java")).ok());
    java.context("no Java found on the PATH or in JAVA_HOME: install version 17 or newer")
}

/// Java's options: the variable replaces the defaults, since two garbage collectors exclude each
/// other.
pub fn java_options(variable: &str) -> String {
    std::env::var(variable).unwrap_or_else(|_| DEFAULT_JAVA_OPTIONS.to_string())
}
