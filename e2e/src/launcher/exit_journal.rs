//! How the processes of a stack ended: one line each in a journal of the stack.
//! Each process has a supervisor, a few lines of shell, that writes down its exit status; the
//! launcher writes down beforehand which process it is about to end. A process that ended without such a line
//! ended by itself.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use chrono::{DateTime, Local, Utc};

/// A journal longer than this is put aside when the stack is started.
const JOURNAL_BYTES_MAX: u64 = 1024 * 1024;

/// Starts a process in the background, prints its pid, and waits for its end. `setsid` starts the script, so that
/// the end of a terminal's session reaches neither of the two. A journal that is gone is not created again: its
/// stack was deleted.
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
    Kill,
    Stop,
}

/// The end of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Of the component, such as `kafka`.
    pub name: String,
    pub pid: u32,
    pub at: DateTime<Utc>,
    /// As a shell has it: 128 and the signal's number for what a signal ended.
    pub status: i32,
    /// `None`: the launcher neither killed nor stopped the process.
    pub cause: Option<ExitCause>,
}

impl Exit {
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

/// Makes the journal if there is none; a long one makes room.
pub fn open(journal: &Path) -> Result<()> {
    if fs::metadata(journal).is_ok_and(|journal| journal.len() > JOURNAL_BYTES_MAX) {
        fs::rename(journal, journal.with_extension("1"))?;
    }
    File::options().create(true).append(true).open(journal)?;
    Ok(())
}

/// Writes down that a process is about to be ended on purpose.
pub fn record_planned_exit(journal: &Path, name: &str, pid: u32, cause: ExitCause) -> Result<()> {
    let word = if cause == ExitCause::Kill { "kill" } else { "stop" };
    let line = format!("{} {name} {pid} {word}\n", Utc::now().timestamp());
    // In one write, so that no other line comes between.
    File::options().append(true).open(journal)?.write_all(line.as_bytes())?;
    Ok(())
}

/// Every end in the journal, in its order.
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
        let journal = std::env::temp_dir().join(format!("ends-{:08x}", rand::random::<u32>()));
        let text = "1 order 7 kill\n2 order 7 ended 137\nhalf a li\n3 order 8 ended 139\n\
                    4 order 7 ended 0\n5 stock 9 stop\n6 stock 9 ended 0\n";
        fs::write(&journal, text).unwrap();
        let ends = read(&journal).unwrap();
        fs::remove_file(&journal).unwrap();
        let recorded: Vec<_> =
            ends.iter().map(|end| (end.name.as_str(), end.status, end.cause)).collect();
        assert_eq!(
            recorded,
            [
                ("order", 137, Some(ExitCause::Kill)),
                ("order", 139, None),
                // The same pid again: what was announced holds for one end.
                ("order", 0, None),
                ("stock", 0, Some(ExitCause::Stop)),
            ]
        );
        assert!(ends[1].is_unexpected() && ends[1].to_string().starts_with("exited 139 at "));
    }
}
