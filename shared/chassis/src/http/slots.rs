//! Connection slots: how many connections a server serves at a time, and how a waiting client gets the slot
//! of an idle one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How often one more idle connection gives up its slot while a client waits for one.
const SLOT_RECLAIM_INTERVAL: Duration = Duration::from_millis(100);

/// The slots of a server, one for each connection that it serves at a time.
#[derive(Clone)]
pub(crate) struct ConnectionSlots {
    free: Arc<Semaphore>,
    /// Whether a connection waits for a slot.
    has_waiters: Arc<AtomicBool>,
    /// Wakes the connection that has been idle for longest.
    reclaim: Arc<Notify>,
}

impl ConnectionSlots {
    pub(super) fn new(number: usize) -> ConnectionSlots {
        let free = Arc::new(Semaphore::new(number));
        ConnectionSlots { free, has_waiters: Arc::default(), reclaim: Arc::default() }
    }

    /// Waits for a free slot, and makes idle connections give up theirs meanwhile.
    pub(super) async fn acquire(&self) -> OwnedSemaphorePermit {
        let mut slot = pin!(self.free.clone().acquire_owned());
        // The attempt that waits may not get a free slot at once, because tokio makes it yield.
        let mut taken = self.free.clone().try_acquire_owned().ok();
        loop {
            if let Some(slot) = taken {
                self.has_waiters.store(false, Ordering::Relaxed);
                return slot;
            }
            self.has_waiters.store(true, Ordering::Relaxed);
            self.reclaim.notify_one();
            let waited = timeout(SLOT_RECLAIM_INTERVAL, slot.as_mut()).await;
            taken = waited.ok().map(|slot| slot.expect("this semaphore is never closed"));
        }
    }

    /// Waits until a client waits for a slot and this connection is the one to give up its own.
    pub(crate) async fn wait_for_reclaim(&self) {
        loop {
            self.reclaim.notified().await;
            if self.has_waiters.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    /// Whether a client waits for a slot.
    pub(super) fn has_waiters(&self) -> bool {
        self.has_waiters.load(Ordering::Relaxed)
    }
}
