//! The exits of a stack's processes: one line each in a journal of the stack. The supervisor of
//! each process, a few lines of shell, records its exit status. Before the launcher ends a process,
//! it records that as well. A process that exited without such a line exited by itself.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chrono::{DateTime, Local, Utc};

/// A longer journal is renamed when the stack is started.
const JOURNAL_BYTES_MAX: u64 = 1024 * 1024;

/// Starts a process in the background, prints its pid, and waits for its exit. `setsid` starts the
/// script, so that the end of a terminal's session reaches neither process. The script does not
/// create a missing journal: its stack was deleted.
pub const SUPERVISOR_SCRIPT: &str = r#"
name=$1 log=$2 journal=$3
shift 3
"$@" >>"$log" 2>&1 &
echo $!
exec >&-
wait $!
status=$?
[ -e "$journal" ] && echo "$(date +%s) $name $! ended $status" >>"$journal"
"#;

/// What the launcher is about to do to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// Kill it with SIGKILL.
    Kill,
    /// Ask it to stop.
    Stop,
}

/// The exit of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The name of the component, such as `kafka`.
    pub name: String,
    /// The id that the process had.
    pub pid: u32,
    /// When it exited, to the second.
    pub at: DateTime<Utc>,
    /// The status as a shell reports it: 128 plus the signal's number after a signal.
    pub status: i32,
    /// `None`: the launcher neither killed nor stopped the process.
    pub cause: Option<ExitCause>,
}

impl Exit {
    /// Whether the launcher neither killed nor stopped the process.
    pub fn is_unexpected(&self) -> bool {
        self.cause.is_none()
    }
}

impl Display for Exit {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self.cause {
            Some(ExitCause::Kill) => write!(out, "killed")?,
            Some(ExitCause::Stop) => write!(out, "stopped")?,
            None => write!(out, "exited {}", self.status)?,
        }
        write!(out, " at {}", self.at.with_timezone(&Local).format("%H:%M:%S"))
    }
}

/// The journal of a stack, in its directory.
pub fn of_stack(directory: &Path) -> PathBuf {
    directory.join("run").join("exits")
}

/// Creates the journal if it is missing; a long journal is renamed first.
pub fn open(journal: &Path) -> Result<()> {
    if fs::metadata(journal).is_ok_and(|journal| journal.len() > JOURNAL_BYTES_MAX) {
        fs::rename(journal, journal.with_extension("1"))?;
    }
    File::options().create(true).append(true).open(journal)?;
    Ok(())
}

/// Records that the launcher is about to end a process.
pub fn record_planned_exit(journal: &Path, name: &str, pid: u32, cause: ExitCause) -> Result<()> {
    let word = if cause == ExitCause::Kill { "kill" } else { "stop" };
    let line = format!("{} {name} {pid} {word}\n", Utc::now().timestamp());
    // One write, so that no other line comes in between.
    File::options().append(true).open(journal)?.write_all(line.as_bytes())?;
    Ok(())
}

/// Every exit in the journal, in order.
pub fn read(journal: &Path) -> Result<Vec<Exit>> {
    if !journal.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(journal)
        .with_context(|| format!("cannot read {}", journal.display()))?;
    let mut planned = HashMap::new();
    let mut ends = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let &[at, name, pid, ref what @ ..] = words.as_slice() else { continue };
        let (Ok(at), Ok(pid)) = (at.parse(), pid.parse()) else { continue };
        let process = (name.to_string(), pid);
        match what {
            ["kill"] => drop(planned.insert(process, ExitCause::Kill)),
            ["stop"] => drop(planned.insert(process, ExitCause::Stop)),
            ["ended", status] => ends.push(Exit {
                cause: planned.remove(&process),
                name: process.0,
                pid,
                at: DateTime::from_timestamp(at, 0).unwrap_or_default(),
                status: status.parse().unwrap_or(-1),
            }),
            _ => {}
        }
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_that_was_not_planned_is_unexpected() {
        let directory = tempfile::tempdir().unwrap();
        let journal = directory.path().join("exits");
        let text = "1 a 7 kill\n2 a 7 ended 137\nhalf a li\n3 a 8 ended 139\n\
                    4 a 7 ended 0\n5 b 9 stop\n6 b 9 ended 0\n";
        fs::write(&journal, text).unwrap();
        let ends = read(&journal).unwrap();
        let recorded: Vec<_> =
            ends.iter().map(|end| (end.name.as_str(), end.status, end.cause)).collect();
        assert_eq!(
            recorded,
            [
                ("a", 137, Some(ExitCause::Kill)),
                ("a", 139, None),
                // The same pid again: an announcement in the journal applies to one exit only.
                ("a", 0, None),
                ("b", 0, Some(ExitCause::Stop)),
            ]
        );
        assert!(ends[1].is_unexpected() && ends[1].to_string().starts_with("exited 139 at "));
    }
}
