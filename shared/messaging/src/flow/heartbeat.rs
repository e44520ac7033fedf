//! Heartbeats: each loop beats once a round, and a loop that has not beaten within its bound counts as
//! stalled.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The loops of this process, each with the longest time that it may take for a round.
#[derive(Clone, Default)]
pub struct Heartbeats(Arc<Mutex<Vec<(Heartbeat, Duration)>>>);

/// The heartbeat of one loop, which beats on each round, idle or not.
#[derive(Clone)]
pub struct Heartbeat {
    name: &'static str,
    last_beat_at: Arc<Mutex<Instant>>,
}

impl Heartbeats {
    /// Registers a loop that must beat at least once in every `bound`.
    pub fn register(&self, name: &'static str, bound: Duration) -> Heartbeat {
        let heartbeat = Heartbeat { name, last_beat_at: Arc::new(Mutex::new(Instant::now())) };
        self.0.lock().push((heartbeat.clone(), bound));
        heartbeat
    }

    /// Makes every loop beat: the loops are registered long before they run.
    pub fn beat_all(&self) {
        self.0.lock().iter().for_each(|(heartbeat, _)| heartbeat.beat());
    }

    /// The loop that has not beaten within its bound, in one sentence; `None` if there is none.
    pub fn stalled(&self) -> Option<String> {
        self.0.lock().iter().find_map(|(heartbeat, bound)| {
            let still = heartbeat.last_beat_at.lock().elapsed();
            let name = heartbeat.name;
            (still > *bound).then(|| format!("The {name} has not moved for {still:.1?}."))
        })
    }
}

impl Heartbeat {
    /// Records that the loop begins a round.
    pub fn beat(&self) {
        *self.last_beat_at.lock() = Instant::now();
    }
}
