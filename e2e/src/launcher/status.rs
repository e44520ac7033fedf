//! The status of a component, and the outcome of a stop.

use std::time::Duration;

use crate::launcher::exit_journal::Exit;

/// How long a component may take to stop by itself. After that it is killed.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct ComponentStatus {
    pub name: String,
    pub pid: Option<u32>,
    /// Its address for clients.
    pub port: u16,
    pub state: ComponentState,
    pub memory_bytes: u64,
    pub uptime: Duration,
    /// Its last exit.
    pub last_exit: Option<Exit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComponentState {
    Stopped,
    Starting,
    Ready,
    Paused,
}

/// The result of a graceful stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopOutcome {
    NotRunning,
    /// It exited by itself after this time.
    Graceful(Duration),
    /// It was killed after the timeout.
    Killed,
}
