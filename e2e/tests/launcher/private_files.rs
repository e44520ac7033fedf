//! The files of a native stack are closed to the other accounts of the machine.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, ensure};
use launcher::directories;

use crate::fixture::*;

/// The account of the databases' servers if the launcher runs as root.
const DATABASES: u32 = 65_534;

/// An account that nothing of a stack has.
const ANOTHER: u32 = 31_337;

#[tokio::test(flavor = "multi_thread")]
async fn no_other_account_reads_a_file_of_a_stack_and_that_of_the_databases_reads_theirs_alone()
-> Result<()> {
    let _permit = stack_permit().await?;
    if !directories::is_root() {
        // Only root can act as another account.
        return Ok(());
    }
    let stack = secured_stack()?;
    stack.up().await?;
    let directory = stack.directory();
    ensure!(directory.join("log/registry.log").exists() && directory.join("kafka/data").exists());
    let readable = readable_files(directory, ANOTHER)?;
    ensure!(readable.is_empty(), "{readable:#?}");
    let is_of_database = |file: &String| {
        let path = Path::new(file).strip_prefix(directory).unwrap_or(Path::new(""));
        path.iter().next().is_some_and(|first| first.to_string_lossy().ends_with("-db"))
    };
    let mut readable = readable_files(directory, DATABASES)?;
    readable.retain(|file| !is_of_database(file));
    ensure!(readable.is_empty(), "{readable:#?}");
    Ok(())
}

/// The files below a directory that an account can read, as that account finds them, and those that it can open by
/// their names.
fn readable_files(directory: &Path, account: u32) -> Result<Vec<String>> {
    let names = Command::new("find").arg(directory).args(["-type", "f"]).output()?;
    let names = String::from_utf8(names.stdout)?;
    ensure!(names.lines().count() > 20, "{names}");
    let readable = |name: &str| -> Result<bool> {
        let id = account.to_string();
        let mut test = Command::new("setpriv");
        test.args(["--reuid", &id, "--regid", &id, "--clear-groups", "test", "-r", name]);
        Ok(test.status()?.success())
    };
    let mut found = Vec::new();
    for name in names.lines() {
        if readable(name)? {
            found.push(name.to_owned());
        }
    }
    Ok(found)
}
