//! An instance of a service with a limit of open files, as a container runtime sets one.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use anyhow::Result;
use launcher::Stack;
use launcher::directories::programs_directory;

/// Gives an instance these limits from its next start on. The soft limit must not be above the hard
/// one.
///
/// # Errors
/// If the script that sets the limits cannot be written, or the stack has no such instance.
pub fn set(stack: &Stack, name: &str, service: &str, soft: u64, hard: u64) -> Result<()> {
    let directory = stack.directory().join(format!("limited-{name}"));
    fs::create_dir_all(&directory)?;
    let program = programs_directory()?.join(service);
    // The soft limit first: a hard limit cannot be set below it.
    let script = format!(
        "#!/bin/sh\nulimit -Sn {soft} && ulimit -Hn {hard} && exec '{}' \"$@\"\n",
        program.display()
    );
    let file = directory.join(service);
    fs::write(&file, script)?;
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755))?;
    stack.set_programs(name, &directory)
}

/// Gives the instance the launcher's own limits again, from its next start on.
pub fn reset(stack: &Stack, name: &str) -> Result<()> {
    stack.set_programs(name, &programs_directory()?)
}
