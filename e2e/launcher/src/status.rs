//! The status of a component, and the outcome of a stop.

use std::fmt::{self, Display};
use std::time::Duration;

use crate::processes::exit_journal::Exit;

/// How long a component may take to stop by itself. After that it is killed.
pub(crate) const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// A component as [`Stack::status`](crate::Stack::status) found it.
#[derive(Clone, Debug)]
pub struct ComponentStatus {
    /// Its name, such as `kafka`.
    pub name: String,
    /// Its first process, if it runs.
    pub pid: Option<u32>,
    /// Its port for clients.
    pub port: u16,
    /// Whether it runs, and responds.
    pub state: ComponentState,
    /// The memory of all its processes, with their share of what they share with others; 0 if it does
    /// not run.
    pub memory_bytes: u64,
    /// How long its first process has run; zero if it does not run.
    pub uptime: Duration,
    /// Its last exit, if it ever exited.
    pub last_exit: Option<Exit>,
}

/// Whether a component runs, and responds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComponentState {
    /// It does not run.
    Stopped,
    /// It runs, and does not respond yet.
    Starting,
    /// It responds.
    Ready,
    /// It is frozen.
    Paused,
}

impl Display for ComponentState {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        out.write_str(match self {
            ComponentState::Stopped => "stopped",
            ComponentState::Starting => "starting",
            ComponentState::Ready => "ready",
            ComponentState::Paused => "paused",
        })
    }
}

/// The result of a graceful stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopOutcome {
    /// It did not run.
    NotRunning,
    /// It exited by itself after this time.
    Graceful(Duration),
    /// It was killed after the timeout.
    Killed,
}
