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

use std::sync::atomic::{AtomicBool, Ordering};

/// Set by the tests of the host too: what takes minutes takes seconds then.
pub static IS_TEST: AtomicBool = AtomicBool::new(cfg!(test));

/// A number, or a smaller one in tests.
pub(crate) fn unless_test(number: u64, in_tests: u64) -> u64 {
    if IS_TEST.load(Ordering::Relaxed) { in_tests } else { number }
}
