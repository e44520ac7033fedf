//! Processes in `/proc`: which ones live, since when, and what they use.

use std::fmt::{self, Display};
use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Linux counts start and processor times in hundredths of a second on every architecture that Rust
/// supports.
const TICKS_PER_SECOND: u64 = 100;

/// A living process, distinguished from a later one with the same pid by its start time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessIdentity {
    /// Its id.
    pub pid: u32,
    pub(crate) started_ticks: u64,
}

impl ProcessIdentity {
    /// The identity of a process that was just started. One that has already exited does not live.
    pub fn from_pid(pid: u32) -> Self {
        Self { pid, started_ticks: ProcStat::read(pid).map_or(0, |stat| stat.started_ticks) }
    }

    /// Whether it lives: another process may have its id now.
    pub fn is_alive(&self) -> bool {
        ProcStat::read(self.pid).is_some_and(|stat| {
            stat.started_ticks == self.started_ticks && !matches!(stat.state, 'Z' | 'X')
        })
    }

    /// Whether SIGSTOP has frozen it.
    pub(crate) fn is_paused(&self) -> bool {
        ProcStat::read(self.pid).is_some_and(|stat| matches!(stat.state, 'T' | 't'))
    }

    /// How long it has run.
    pub(crate) fn uptime(&self) -> Duration {
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let uptime: f64 =
            uptime.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
        let started = self.started_ticks as f64 / TICKS_PER_SECOND as f64;
        Duration::from_secs_f64((uptime - started).max(0.0))
    }

    /// Its own processor time, and that of its exited children.
    pub fn cpu_time(&self) -> Duration {
        ProcStat::read(self.pid).map_or(Duration::ZERO, |stat| stat.cpu_time())
    }

    /// The processor time of its living threads with these names, of which Linux keeps the first 15
    /// characters.
    pub fn cpu_time_of_threads(&self, named: impl Fn(&str) -> bool) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten();
        let threads = threads.flatten().map(|thread| thread.path()).filter(|thread| {
            fs::read_to_string(thread.join("comm")).is_ok_and(|name| named(name.trim_end()))
        });
        threads
            .filter_map(|thread| Some(ProcStat::read_file(&thread.join("stat"))?.cpu_time()))
            .sum()
    }

    /// Its own memory in bytes, and its share of what it shares with others.
    pub fn memory_bytes(&self) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid));
        let Ok(rollup) = rollup else { return 0 };
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = pss.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Waits for its exit. Returns false if it still lives after `within`.
    pub(crate) async fn wait_for_exit(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.is_alive() {
            if Instant::now() > deadline {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }
}

impl Display for ProcessIdentity {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{} {}", self.pid, self.started_ticks)
    }
}

/// Living processes that run one of `programs` with a working directory at or below `home`. Both
/// are required, so that a shell in that directory is not touched.
pub fn processes_in(home: &Path, programs: &[&str]) -> Vec<ProcessIdentity> {
    find_processes(|pid| {
        let link = |name: &str| fs::read_link(format!("/proc/{pid}/{name}"));
        let (Ok(directory), Ok(program)) = (link("cwd"), link("exe")) else {
            return false;
        };
        let directory = directory.to_string_lossy().replace(" (deleted)", "");
        let program = program.to_string_lossy().replace(" (deleted)", "");
        Path::new(&directory).starts_with(home)
            && programs.iter().any(|name| Path::new(&program).ends_with(name))
    })
}

/// Living processes of a process group.
pub(crate) fn processes_in_group(group: u32) -> Vec<ProcessIdentity> {
    find_processes(|pid| ProcStat::read(pid).is_some_and(|stat| stat.group == group))
}

fn find_processes(matches: impl Fn(u32) -> bool) -> Vec<ProcessIdentity> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| matches(*pid))
        .filter_map(|pid| {
            let started_ticks = ProcStat::read(pid)?.started_ticks;
            Some(ProcessIdentity { pid, started_ticks })
        })
        .filter(ProcessIdentity::is_alive)
        .collect()
}

struct ProcStat {
    state: char,
    group: u32,
    cpu_ticks: u64,
    started_ticks: u64,
}

impl ProcStat {
    fn read(pid: u32) -> Option<Self> {
        Self::read_file(Path::new(&format!("/proc/{pid}/stat")))
    }

    fn read_file(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        // The second field is the program's name, which may itself contain blanks and brackets.
        let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            group: fields.get(2)?.parse().ok()?,
            // User and kernel mode, each of the process and of its exited children.
            cpu_ticks: fields.get(11..15)?.iter().filter_map(|word| word.parse::<u64>().ok()).sum(),
            started_ticks: fields.get(19)?.parse().ok()?,
        })
    }

    fn cpu_time(&self) -> Duration {
        Duration::from_millis(self.cpu_ticks * 1_000 / TICKS_PER_SECOND)
    }
}

/// The id of the current boot.
pub(crate) fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_string()
}
