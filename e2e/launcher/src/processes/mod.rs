//! One detached process: started in a session of its own, with a log, a pid file and a supervisor
//! that records its exit. Its pid, start time and boot id identify it, so a pid file left by a
//! crash never matches another living process. Its working directory finds it as well, if a
//! launcher crashed before it wrote the pid file.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
pub use rustix::process::Signal;
use rustix::process::{Pid, kill_process, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::Command;
use tokio::time::Instant;

use crate::processes::exit_journal::{ExitCause, SUPERVISOR_SCRIPT};
use crate::processes::proc_fs::{ProcessIdentity, boot_id, processes_in};

pub mod exit_journal;
pub mod proc_fs;

/// Variables of the environment, by their names.
pub type Variables = BTreeMap<String, String>;

/// The same variables, with owned names.
pub fn variables<const N: usize>(settings: [(&str, String); N]) -> Variables {
    settings.map(|(name, value)| (name.to_string(), value)).into()
}

/// A longer log is renamed at the next start.
const LOG_BYTES_MAX: u64 = 16 * 1024 * 1024;
/// How long to wait for the supervisor of an exited process: it writes one line.
const SUPERVISOR_EXIT_TIMEOUT: Duration = Duration::from_secs(5);

/// The place of one process: its working directory, log and pid file.
#[derive(Clone, Debug)]
pub struct Process {
    /// The name of the component.
    pub name: String,
    /// The working directory, which no other process of the stack has.
    pub home: PathBuf,
    /// File name of the program, as `/proc/<pid>/exe` shows it.
    pub program: String,
    pub log: PathBuf,
    pub pid_file: PathBuf,
    /// The exit journal of the stack.
    pub journal: PathBuf,
}

impl Process {
    /// The process of a component, in the directory of its stack.
    pub fn new(stack: &Path, name: &str, program: &str) -> Self {
        Process {
            name: name.to_string(),
            home: stack.join(name),
            program: program.to_string(),
            log: stack.join("log").join(format!("{name}.log")),
            pid_file: stack.join("run").join(format!("{name}.pid")),
            journal: exit_journal::of_stack(stack),
        }
    }

    /// The process in the pid file, if it lives.
    pub fn running(&self) -> Option<ProcessIdentity> {
        self.read_pid_file(0)
    }

    fn supervisor(&self) -> Option<ProcessIdentity> {
        self.read_pid_file(1)
    }

    /// The pid file names the process, its supervisor and the boot.
    fn read_pid_file(&self, nth: usize) -> Option<ProcessIdentity> {
        let text = fs::read_to_string(&self.pid_file).ok()?;
        let words: Vec<&str> = text.split_whitespace().collect();
        let &[pid, started_ticks] = words.chunks_exact(2).nth(nth)? else { return None };
        let identity =
            ProcessIdentity { pid: pid.parse().ok()?, started_ticks: started_ticks.parse().ok()? };
        (words.last() == Some(&boot_id().as_str()) && identity.is_alive()).then_some(identity)
    }

    /// Every living process of this place: the one in the pid file, its children, and any that a
    /// crashed launcher started without a pid file.
    pub fn all_processes(&self) -> Vec<ProcessIdentity> {
        let mut family = processes_in(&self.home, &[&self.program]);
        if let Some(living) = self.running().filter(|living| !family.contains(living)) {
            family.push(living);
        }
        family
    }

    /// Starts `command` detached, and writes the pid file.
    pub async fn spawn(&self, command: &LaunchCommand) -> Result<ProcessIdentity> {
        let too_long = fs::metadata(&self.log).is_ok_and(|log| log.len() > LOG_BYTES_MAX);
        if too_long {
            fs::rename(&self.log, self.log.with_extension("log.1"))?;
        }
        exit_journal::open(&self.journal)?;
        // `setsid`, since a process group would not protect it from the end of the terminal's
        // session.
        let mut supervisor = Command::new("setsid")
            .args(["sh", "-c", SUPERVISOR_SCRIPT, "supervisor", &self.name])
            .args([&self.log, &self.journal])
            .args(command.command_line())
            .envs(&command.environment)
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {command}"))?;
        let stdout = supervisor.stdout.take().context("its output is a pipe")?;
        let pid = BufReader::new(stdout).lines().next_line().await?.unwrap_or_default();
        let pid = pid.parse().with_context(|| format!("cannot start {}", self.name))?;
        let process = ProcessIdentity::from_pid(pid);
        let supervisor = ProcessIdentity::from_pid(supervisor.id().unwrap_or_default());
        let text = format!("{process} {supervisor} {}\n", boot_id());
        let fresh = self.pid_file.with_extension("pid.new");
        fs::write(&fresh, text)?;
        fs::rename(&fresh, &self.pid_file)?;
        Ok(process)
    }

    /// Records in the journal that the launcher is about to end it.
    pub fn record_planned_exit(&self, cause: ExitCause) -> Result<()> {
        match self.running() {
            Some(living) => {
                exit_journal::record_planned_exit(&self.journal, &self.name, living.pid, cause)
            }
            None => Ok(()),
        }
    }

    /// Sends SIGKILL to all its processes, and returns when they are gone and the exit is recorded.
    pub fn kill_all(&self) -> Result<()> {
        self.record_planned_exit(ExitCause::Kill)?;
        kill_until_gone(|| self.all_processes())
            .with_context(|| format!("in {}", self.home.display()))?;
        self.remove_pid_file();
        Ok(())
    }

    /// Deletes the pid file of an exited process, as soon as its exit is recorded.
    pub fn remove_pid_file(&self) {
        let deadline = Instant::now() + SUPERVISOR_EXIT_TIMEOUT;
        while self.supervisor().is_some() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = fs::remove_file(&self.pid_file);
    }

    /// Runs a command in the directory of this process to its exit, with its output in the log.
    ///
    /// # Errors
    /// If it fails; the error has the end of its output.
    pub async fn run(&self, what: &str, command: &LaunchCommand, within: Duration) -> Result<()> {
        let from = self.log_length();
        let succeeded = command.run(&self.home, &self.log, within).await?;
        let log = self.log.display();
        ensure!(succeeded, "{what} failed; {log} ends with:\n{}", self.log_tail(from));
        Ok(())
    }

    /// The current length of the log: later output belongs to the next start.
    pub fn log_length(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |log| log.len())
    }

    /// The last lines of the log after `from`.
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

/// A command line, with the variables that are added to the launcher's own environment.
#[derive(Clone, Debug, Default)]
pub struct LaunchCommand {
    pub program: PathBuf,
    pub arguments: Vec<String>,
    pub environment: Variables,
    /// Whether it runs as the unprivileged user: PostgreSQL refuses to run as root.
    pub unprivileged: bool,
}

impl LaunchCommand {
    pub fn new(
        program: impl Into<PathBuf>,
        arguments: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        let arguments = arguments.into_iter().map(Into::into).collect();
        Self { program: program.into(), arguments, ..Self::default() }
    }

    /// Adds arguments.
    pub fn add(&mut self, arguments: impl IntoIterator<Item = impl Into<String>>) {
        self.arguments.extend(arguments.into_iter().map(Into::into));
    }

    fn command_line(&self) -> Vec<String> {
        let mut words = Vec::new();
        if self.unprivileged {
            let id = NOBODY_ID.to_string();
            words.extend(
                ["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"].map(String::from),
            );
        }
        words.push(self.program.display().to_string());
        words.extend(self.arguments.iter().cloned());
        words
    }

    /// Runs it to its exit, with its output in `log`.
    pub async fn run(&self, home: &Path, log: &Path, within: Duration) -> Result<bool> {
        let log = File::options().create(true).append(true).open(log)?;
        let mut command = self.attached(home);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut child = command.spawn().with_context(|| format!("cannot start {self}"))?;
        let status = tokio::time::timeout(within, child.wait())
            .await
            .with_context(|| format!("{self} did not end within {within:?}"))??;
        Ok(status.success())
    }

    /// Runs it to its exit with this standard input, and returns its standard output.
    pub async fn run_with_input(&self, home: &Path, input: &str) -> Result<String> {
        let mut command = self.attached(home);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {self}"))?;
        let mut stdin = child.stdin.take().context("its input is a pipe")?;
        // The result is ignored: a program that fails early reads nothing.
        let _ = stdin.write_all(input.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await?;
        let failure = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{}", failure.trim());
        Ok(String::from_utf8(output.stdout)?)
    }

    /// The command as a child that ends with this process.
    fn attached(&self, home: &Path) -> Command {
        let words = self.command_line();
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(&self.environment).current_dir(home).kill_on_drop(true);
        command
    }
}

impl Display for LaunchCommand {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{}", self.command_line().join(" "))
    }
}

/// The unprivileged user and group of Linux, by convention.
pub const NOBODY_ID: u32 = 65534;

/// Sends a signal to the living ones of these processes.
///
/// # Errors
/// If a process has an invalid id.
pub fn send_signal(signal: Signal, to: &[ProcessIdentity]) -> Result<()> {
    for process in to.iter().filter(|process| process.is_alive()) {
        // The result is ignored: the process may have exited meanwhile.
        let _ = kill_process(rustix_pid(process.pid)?, signal);
    }
    Ok(())
}

/// Sends a signal to a process group, which includes processes that are just being started.
pub(crate) fn send_signal_to_group(signal: Signal, group: u32) -> Result<()> {
    // The result is ignored: the group may have exited meanwhile.
    let _ = kill_process_group(rustix_pid(group)?, signal);
    Ok(())
}

fn rustix_pid(pid: u32) -> Result<Pid> {
    Pid::from_raw(i32::try_from(pid)?).context("no process has the pid 0")
}

/// Sends SIGKILL to the processes that `find` returns, until it returns none. Blocks for at most
/// ten seconds, usually for a few milliseconds.
pub(crate) fn kill_until_gone(find: impl Fn() -> Vec<ProcessIdentity>) -> Result<()> {
    for _ in 0..500 {
        let living = find();
        if living.is_empty() {
            return Ok(());
        }
        send_signal(Signal::KILL, &living)?;
        std::thread::sleep(Duration::from_millis(20));
    }
    anyhow::bail!("processes survive SIGKILL: {:?}", find())
}
