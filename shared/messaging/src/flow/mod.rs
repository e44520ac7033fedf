//! How the loops of a process pace themselves and one another: lingering makes batches larger under
//! concurrency, wakeups make loops poll sooner, backpressure lets a loop that is behind go before the
//! commands, backoff spreads the attempts of what is retried, and heartbeats show a loop that stalls.
//!
//! Promise: pacing changes when work happens and never whether it happens. A loop breaks that promise if it
//! relies on a wakeup and stops polling.

pub(crate) mod backoff;
pub(crate) mod backpressure;
pub mod heartbeat;
pub(crate) mod linger;
pub mod reload;
pub mod wakeups;
