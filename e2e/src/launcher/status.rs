//! The status of a component, and the outcome of a stop.

use std::time::Duration;

use crate::launcher::exit_journal::Exit;

/// How long a component may take to stop by itself. Then it is killed.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Clone, Debug)]
pub struct ComponentStatus {
    pub name: String,
    pub pid: Option<u32>,
    /// Where clients reach it.
    pub port: u16,
    pub state: ComponentState,
    pub memory_bytes: u64,
    pub uptime: Duration,
    /// How it ended the last time.
    pub last_exit: Option<Exit>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComponentState {
    Stopped,
    Starting,
    Ready,
    Paused,
}

/// How a graceful stop went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopOutcome {
    NotRunning,
    /// It ended by itself after this long.
    Graceful(Duration),
    /// It had to be killed when its time was up.
    Killed,
}
