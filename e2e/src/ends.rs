//! How the processes of a stack ended: one line each in a journal of the stack.
//! Each process has a supervisor, a few lines of shell, that writes down its exit status; the
//! launcher writes down beforehand whom it is about to end. Whoever ended without that died by
//! itself.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use chrono::{DateTime, Local, Utc};

use crate::findings::Findings;
use crate::invariants::Invariant::I14;

/// A journal longer than this is put aside when the stack is started.
const JOURNAL_BYTES_MAX: u64 = 1024 * 1024;

/// Starts a process in the background, says its pid, and waits for its end. Started by `setsid`, so
/// that neither is reached by the end of a terminal's session. A journal that is gone is not made
/// anew: its stack was deleted.
pub const SUPERVISE: &str = r#"
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
pub enum Cause {
    Kill,
    Stop,
}

/// The end of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct End {
    /// Of the member: `order`, `kafka`, `stock-db`.
    pub name: String,
    pub pid: u32,
    pub at: DateTime<Utc>,
    /// As a shell has it: 128 and the signal's number for what a signal ended.
    pub status: i32,
    /// Whom the launcher neither killed nor stopped, died.
    pub cause: Option<Cause>,
}

impl End {
    pub fn is_death(&self) -> bool {
        self.cause.is_none()
    }
}

impl Display for End {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        match self.cause {
            Some(Cause::Kill) => write!(out, "killed")?,
            Some(Cause::Stop) => write!(out, "stopped")?,
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
pub fn announce(journal: &Path, name: &str, pid: u32, cause: Cause) -> Result<()> {
    let word = if cause == Cause::Kill { "kill" } else { "stop" };
    let line = format!("{} {name} {pid} {word}\n", Utc::now().timestamp());
    // In one write, so that no other line comes between.
    File::options().append(true).open(journal)?.write_all(line.as_bytes())?;
    Ok(())
}

/// Every end that the journal tells of, in order.
pub fn read(journal: &Path) -> Result<Vec<End>> {
    if !journal.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(journal)
        .with_context(|| format!("cannot read {}", journal.display()))?;
    let mut announced = HashMap::new();
    let mut ends = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let &[at, name, pid, ref what @ ..] = words.as_slice() else { continue };
        let (Ok(at), Ok(pid)) = (at.parse(), pid.parse()) else { continue };
        let who = (name.to_string(), pid);
        match what {
            ["kill"] => drop(announced.insert(who, Cause::Kill)),
            ["stop"] => drop(announced.insert(who, Cause::Stop)),
            ["ended", status] => ends.push(End {
                cause: announced.remove(&who),
                name: who.0,
                pid,
                at: DateTime::from_timestamp(at, 0).unwrap_or_default(),
                status: status.parse().unwrap_or(-1),
            }),
            _ => {}
        }
    }
    Ok(ends)
}

/// Who died, in sentences.
pub fn deaths(ends: &[End]) -> impl Iterator<Item = String> {
    let deaths = ends.iter().filter(|end| end.is_death());
    deaths.map(|end| format!("{} died by itself (I14): it {end}", end.name))
}

/// Nobody may have died but by the run's hand: of deaths that the launcher did not cause, there are as
/// many as the run caused otherwise, at a crash point for instance.
pub fn check(ends: &[End], caused: usize, findings: &mut Findings) {
    let deaths: Vec<&End> = ends.iter().filter(|end| end.is_death()).collect();
    if deaths.len() > caused {
        for end in &deaths {
            findings.add(I14, "died", || {
                format!("{} {end}; {} died, {caused} were to", end.name, deaths.len())
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_that_nobody_asked_for_is_a_death() {
        let journal = std::env::temp_dir().join(format!("ends-{:08x}", rand::random::<u32>()));
        let text = "1 order 7 kill\n2 order 7 ended 137\nhalf a li\n3 order 8 ended 139\n\
                    4 order 7 ended 0\n5 stock 9 stop\n6 stock 9 ended 0\n";
        fs::write(&journal, text).unwrap();
        let ends = read(&journal).unwrap();
        fs::remove_file(&journal).unwrap();
        let told: Vec<_> =
            ends.iter().map(|end| (end.name.as_str(), end.status, end.cause)).collect();
        assert_eq!(
            told,
            [
                ("order", 137, Some(Cause::Kill)),
                ("order", 139, None),
                // The same pid again: what was announced holds for one end.
                ("order", 0, None),
                ("stock", 0, Some(Cause::Stop)),
            ]
        );
        assert!(ends[1].is_death() && ends[1].to_string().starts_with("exited 139 at "));
    }
}
