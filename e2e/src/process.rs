//! One detached process: started in a session of its own, with a log, a pid file and a supervisor
//! that writes down how it ended.
//! It is known by its pid, its start time and the boot it belongs to, so that a pid file left by a
//! crash is never mistaken for a living process; and by its working directory, so that a process
//! whose pid file was never written is found as well.

use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use crate::ends::{self, Cause, SUPERVISE};

/// A log longer than this is put aside at the next start.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// Linux counts start and processor times in hundredths of a second on every architecture that Rust runs on.
const TICKS_PER_SECOND: u64 = 100;
/// How long the supervisor of a process that is gone is waited for: it writes one line.
const WRITTEN_DOWN_WITHIN: Duration = Duration::from_secs(5);

/// A place where one process runs: its working directory, log and pid file.
#[derive(Clone, Debug)]
pub struct Process {
    /// Of the member.
    pub name: String,
    /// Working directory, that no other process of the stack has.
    pub home: PathBuf,
    /// File name of the program, as `/proc/<pid>/exe` shows it.
    pub program: String,
    pub log: PathBuf,
    pub pid_file: PathBuf,
    /// Where the ends of all processes of the stack are written down.
    pub journal: PathBuf,
}

/// A living process, told from a later one with the same pid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    pub pid: u32,
    started_ticks: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    Term,
    Int,
    Quit,
    Kill,
    Stop,
    Continue,
}

impl Process {
    /// The process that the pid file names, if it lives.
    pub fn living(&self) -> Option<Identity> {
        self.named(0)
    }

    fn supervisor(&self) -> Option<Identity> {
        self.named(1)
    }

    /// The pid file names the process, its supervisor and the boot.
    fn named(&self, nth: usize) -> Option<Identity> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let &[pid, started_ticks] = words.chunks_exact(2).nth(nth)? else { return None };
        let identity =
            Identity { pid: pid.parse().ok()?, started_ticks: started_ticks.parse().ok()? };
        (words.last() == Some(&boot_id().as_str()) && identity.lives()).then_some(identity)
    }

    /// Every living process of this place: the named one, its children, and what a crashed launcher
    /// started without having written the pid file.
    pub fn family(&self) -> Vec<Identity> {
        let mut family = processes_in(&self.home, &[&self.program]);
        if let Some(living) = self.living().filter(|living| !family.contains(living)) {
            family.push(living);
        }
        family
    }

    /// Starts `command` detached, and writes down what was started.
    pub async fn spawn(&self, command: &Launch) -> Result<Identity> {
        let too_long = fs::metadata(&self.log).is_ok_and(|log| log.len() > LOG_BYTES_MAX);
        if too_long {
            fs::rename(&self.log, self.log.with_extension("log.1"))?;
        }
        ends::open(&self.journal)?;
        // `setsid` and not a process group: the end of the terminal's session must not reach it.
        let mut supervisor = Command::new("setsid")
            .args(["sh", "-c", SUPERVISE, "supervisor", &self.name])
            .args([&self.log, &self.journal])
            .args(command.words())
            .envs(command.environment.iter().map(|(key, value)| (key, value)))
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", command.words().join(" ")))?;
        let said = supervisor.stdout.take().context("it was given an output")?;
        let pid = BufReader::new(said).lines().next_line().await?.unwrap_or_default();
        let pid = pid.parse().with_context(|| format!("cannot start {}", self.name))?;
        let process = Identity::of(pid);
        let supervisor = Identity::of(supervisor.id().unwrap_or_default());
        let text = format!("{process} {supervisor} {}\n", boot_id());
        let fresh = self.pid_file.with_extension("pid.new");
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &self.pid_file)?;
        Ok(process)
    }

    /// Writes down that its end is wanted.
    pub fn announce_end(&self, cause: Cause) -> Result<()> {
        match self.living() {
            Some(living) => ends::announce(&self.journal, &self.name, living.pid, cause),
            None => Ok(()),
        }
    }

    /// Sends SIGKILL to the whole family, and returns when it is gone and its end written down.
    pub fn kill_family(&self) -> Result<()> {
        self.announce_end(Cause::Kill)?;
        kill_until_gone(|| self.family()).with_context(|| format!("in {}", self.home.display()))?;
        self.forget();
        Ok(())
    }

    /// Forgets a process that is gone, as soon as its end is written down.
    pub fn forget(&self) {
        let deadline = Instant::now() + WRITTEN_DOWN_WITHIN;
        while self.supervisor().is_some() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = fs::remove_file(&self.pid_file);
    }

    /// How long the log is now; what comes later belongs to the next start.
    pub fn log_length(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// The last lines of the log that were written after `from`.
    pub fn log_tail(&self, from: u64) -> String {
        let mut text = Vec::new();
        if let Ok(mut log) = File::open(&self.log) {
            let length = self.log_length();
            let from = if from > length { 0 } else { from }.max(length.saturating_sub(16_384));
            let _ = log.seek(SeekFrom::Start(from));
            let _ = log.read_to_end(&mut text);
        }
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}

/// A command line and what its environment has beyond the launcher's own.
#[derive(Clone, Debug, Default)]
pub struct Launch {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Vec<(String, String)>,
    /// Run as the user `nobody`: PostgreSQL refuses to run as root.
    pub unprivileged: bool,
}

impl Launch {
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.unprivileged {
            let id = NOBODY.to_string();
            words.extend(
                ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"].map(String::from),
            );
        }
        words.push(self.program.display().to_string());
        words.extend(self.arguments.iter().cloned());
        words
    }

    /// Runs it to its end, with what it prints going to `log`.
    pub async fn run(&self, home: &Path, log: &Path, within: Duration) -> Result<bool> {
        let log = File::options().create(true).append(true).open(log)?;
        let words = self.words();
        let mut child = Command::new(&words[0])
            .args(&words[1..])
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .current_dir(home)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", words.join(" ")))?;
        let status = tokio::time::timeout(within, child.wait())
            .await
            .with_context(|| format!("{} did not end within {within:?}", words.join(" ")))??;
        Ok(status.success())
    }
}

/// The user and group `nobody`, by Linux convention.
pub const NOBODY: u32 = 65534;

impl Identity {
    /// Of a process that was just started; one that has ended already does not live.
    pub fn of(pid: u32) -> Self {
        Self { pid, started_ticks: Stat::of(pid).map_or(0, |stat| stat.started_ticks) }
    }

    pub fn lives(&self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| {
            stat.started_ticks == self.started_ticks && !matches!(stat.state, 'Z' | 'X')
        })
    }

    pub fn is_paused(&self) -> bool {
        Stat::of(self.pid).is_some_and(|stat| matches!(stat.state, 'T' | 't'))
    }

    /// How long it has been running.
    pub fn age(&self) -> Duration {
        let uptime = fs::read_to_string("/proc/uptime").unwrap_or_default();
        let uptime: f64 =
            uptime.split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0.0);
        let started = self.started_ticks as f64 / TICKS_PER_SECOND as f64;
        Duration::from_secs_f64((uptime - started).max(0.0))
    }

    /// Processor time of its own, and of its children that have ended.
    pub fn cpu_time(&self) -> Duration {
        Stat::of(self.pid).map_or(Duration::ZERO, |stat| stat.cpu_time())
    }

    /// Processor time of its living threads with such names, of which Linux keeps the first 15 letters.
    pub fn cpu_time_of_threads(&self, named: impl Fn(&str) -> bool) -> Duration {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten();
        let threads = threads.flatten().map(|thread| thread.path()).filter(|thread| {
            fs::read_to_string(thread.join("comm")).is_ok_and(|name| named(name.trim_end()))
        });
        threads.filter_map(|thread| Some(Stat::at(&thread.join("stat"))?.cpu_time())).sum()
    }

    /// Memory of its own plus its share of what it shares with others.
    pub fn memory_bytes(&self) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid));
        let Ok(rollup) = rollup else { return 0 };
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = pss.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        kib.unwrap_or(0) * 1024
    }

    /// Waits for its end; false if it still lives after `within`.
    pub async fn ended(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while self.lives() {
            if Instant::now() > deadline {
                return false;
            }
            sleep(Duration::from_millis(20)).await;
        }
        true
    }
}

impl Display for Identity {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{} {}", self.pid, self.started_ticks)
    }
}

/// Sends a signal to those that still live.
pub fn send(signal: Signal, to: &[Identity]) -> Result<()> {
    let pids: Vec<String> = to
        .iter()
        .filter(|process| process.lives())
        .map(|process| process.pid.to_string())
        .collect();
    if pids.is_empty() { Ok(()) } else { kill(signal, &pids.join(" ")) }
}

/// Sends a signal to a whole process group, and so also to what is being started just now.
pub fn send_to_group(signal: Signal, group: u32) -> Result<()> {
    kill(signal, &format!("-{group}"))
}

/// The shell's own `kill` is used: a system call would need `unsafe`, and not every machine has the
/// program.
fn kill(signal: Signal, to: &str) -> Result<()> {
    let name = match signal {
        Signal::Term => "TERM",
        Signal::Int => "INT",
        Signal::Quit => "QUIT",
        Signal::Kill => "KILL",
        Signal::Stop => "STOP",
        Signal::Continue => "CONT",
    };
    // Its status says nothing: a process may have ended by itself meanwhile.
    std::process::Command::new("sh")
        .args(["-c", &format!("kill -s {name} -- {to}")])
        .stderr(Stdio::null())
        .status()?;
    Ok(())
}

/// Sends SIGKILL to what `find` finds until it finds nothing. Blocks for at most ten seconds, and
/// for a few milliseconds as a rule.
pub fn kill_until_gone(find: impl Fn() -> Vec<Identity>) -> Result<()> {
    for _ in 0..500 {
        let living = find();
        if living.is_empty() {
            return Ok(());
        }
        send(Signal::Kill, &living)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("processes survive SIGKILL: {:?}", find())
}

/// Living processes that run one of `programs` with a working directory at or below `home`.
/// Both are asked for, so that a shell which stands in that directory is left alone.
pub fn processes_in(home: &Path, programs: &[&str]) -> Vec<Identity> {
    living(|pid| {
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
pub fn in_group(group: u32) -> Vec<Identity> {
    living(|pid| Stat::of(pid).is_some_and(|stat| stat.group == group))
}

fn living(is_meant: impl Fn(u32) -> bool) -> Vec<Identity> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids =
        entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.filter(|pid| is_meant(*pid))
        .filter_map(|pid| {
            let started_ticks = Stat::of(pid)?.started_ticks;
            Some(Identity { pid, started_ticks })
        })
        .filter(Identity::lives)
        .collect()
}

struct Stat {
    state: char,
    group: u32,
    cpu_ticks: u64,
    started_ticks: u64,
}

impl Stat {
    fn of(pid: u32) -> Option<Self> {
        Self::at(Path::new(&format!("/proc/{pid}/stat")))
    }

    fn at(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        // The second field is the program's name, which may itself contain blanks and brackets.
        let fields: Vec<&str> = text.get(text.rfind(')')? + 1..)?.split_whitespace().collect();
        Some(Self {
            state: fields.first()?.chars().next()?,
            group: fields.get(2)?.parse().ok()?,
            // In user and in kernel mode, twice: its own, and its ended children's.
            cpu_ticks: fields.get(11..15)?.iter().filter_map(|word| word.parse::<u64>().ok()).sum(),
            started_ticks: fields.get(19)?.parse().ok()?,
        })
    }

    fn cpu_time(&self) -> Duration {
        Duration::from_millis(self.cpu_ticks * 1_000 / TICKS_PER_SECOND)
    }
}

fn boot_id() -> String {
    let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_string()
}
