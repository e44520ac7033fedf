//! Which Java runs, and with which options.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::directories::create_public_directory;
use crate::environment::{path, words};
use crate::processes::LaunchCommand;

/// Enough for a quick start; a benchmark sets a larger heap and the second compiler.
const DEFAULT_OPTIONS: &str = "-Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1";

/// The Java to run, with links followed: Debian's `java` is a link to a link.
pub fn find_java() -> Result<PathBuf> {
    let home = path("JAVA_HOME").map(|home| home.join("bin"));
    let places = path("PATH").unwrap_or_default();
    let mut places = home.into_iter().chain(std::env::split_paths(&places));
    let java = places.find_map(|place| fs::canonicalize(place.join("java")).ok());
    java.context("no Java found on the PATH or in JAVA_HOME: install version 17 or newer")
}

/// Java's options: the variable of a program replaces the defaults, since two garbage collectors exclude each
/// other.
pub fn java_options(program: &str) -> Vec<String> {
    words(&format!("{}_JAVA_OPTS", program.to_uppercase()), DEFAULT_OPTIONS)
}

/// Java with the options of a program, and with an empty directory for temporary files in its home. What the program
/// needs follows.
pub fn java(program: &str, home: &Path) -> Result<LaunchCommand> {
    // Native libraries are unpacked there; in the system's directory a SIGKILL would leave them
    // behind.
    let temporary = home.join("tmp");
    let _ = fs::remove_dir_all(&temporary);
    create_public_directory(&temporary)?;
    let mut command = LaunchCommand::new(find_java()?, java_options(program));
    let temporary = format!("-Djava.io.tmpdir={}", temporary.display());
    command.add([temporary.as_str(), "-XX:-UsePerfData"]);
    Ok(command)
}
