//! Heartbeats: each loop beats once a round, and a loop that has not beaten within its bound counts as
//! stalled.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// The loops of this process, each with the longest time that it may take for a round.
#[derive(Clone)]
pub struct Heartbeats {
    epoch: Instant,
    loops: Arc<Mutex<Vec<(Heartbeat, Duration)>>>,
}

/// The heartbeat of one loop, which beats on each round, idle or not.
#[derive(Clone)]
pub struct Heartbeat {
    name: &'static str,
    epoch: Instant,
    last_ms: Arc<AtomicU64>,
}

impl Heartbeats {
    /// No loop is registered yet.
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        Self { epoch: Instant::now(), loops: Arc::default() }
    }

    /// Registers a loop that must beat at least once in every `bound`.
    pub fn register(&self, name: &'static str, bound: Duration) -> Heartbeat {
        let beat = Heartbeat { name, epoch: self.epoch, last_ms: Arc::default() };
        beat.beat();
        self.lock().push((beat.clone(), bound));
        beat
    }

    /// Restarts the count of every loop: the loops are registered long before they run.
    pub(crate) fn beat_all(&self) {
        self.lock().iter().for_each(|(heartbeat, _)| heartbeat.beat());
    }

    /// The loop that has not beaten within its bound, in one sentence; `None` if there is none.
    pub(crate) fn stalled(&self) -> Option<String> {
        self.lock().iter().find_map(|(heartbeat, bound)| {
            let still = heartbeat.elapsed();
            let name = heartbeat.name;
            (still > *bound).then(|| format!("The {name} has not moved for {still:.1?}."))
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Heartbeat, Duration)>> {
        self.loops.lock().expect("nothing panics while it is held")
    }
}

impl Heartbeat {
    /// Records that the loop begins a round.
    pub fn beat(&self) {
        self.last_ms.store(self.epoch.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn elapsed(&self) -> Duration {
        let last = Duration::from_millis(self.last_ms.load(Ordering::Relaxed));
        self.epoch.elapsed().saturating_sub(last)
    }
}
