//! Connection slots: how many connections a server serves at a time, and how a waiting client gets the slot
//! of a connection whose client sends nothing.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{sleep, timeout};

/// How often one more idle connection gives up its slot while a client waits for one.
const SLOT_RECLAIM_INTERVAL: Duration = Duration::from_millis(20);

/// The slots of a server, one for each connection that it serves at a time.
#[derive(Clone)]
pub(crate) struct ConnectionSlots {
    free: Arc<Semaphore>,
    /// Whether a connection waits for a slot.
    has_waiters: watch::Sender<bool>,
    /// Wakes the connection that has been idle for longest.
    reclaim: Arc<Notify>,
    /// How long a connection keeps its slot from a waiting client while its own client has something to send.
    grace: Duration,
}

impl ConnectionSlots {
    pub(super) fn new(number: usize, grace: Duration) -> ConnectionSlots {
        let (free, has_waiters) = (Arc::new(Semaphore::new(number)), watch::Sender::new(false));
        ConnectionSlots { free, has_waiters, reclaim: Arc::default(), grace }
    }

    /// Waits for a free slot, and makes other connections give up theirs meanwhile.
    pub(super) async fn acquire(&self) -> OwnedSemaphorePermit {
        let mut slot = pin!(self.free.clone().acquire_owned());
        // The attempt that waits may not get a free slot at once, because tokio makes it yield.
        let mut taken = self.free.clone().try_acquire_owned().ok();
        loop {
            if let Some(slot) = taken {
                self.set_has_waiters(false);
                return slot;
            }
            self.set_has_waiters(true);
            self.reclaim.notify_one();
            let waited = timeout(SLOT_RECLAIM_INTERVAL, slot.as_mut()).await;
            taken = waited.ok().map(|slot| slot.expect("this semaphore is never closed"));
        }
    }

    fn set_has_waiters(&self, has_waiters: bool) {
        self.has_waiters
            .send_if_modified(|current| std::mem::replace(current, has_waiters) != has_waiters);
    }

    /// Returns when an idle connection is to end: after `idle_timeout`, or when a client waits for a slot and this
    /// connection is the one to give up its own.
    pub(crate) async fn wait_until_idle_too_long(&self, idle_timeout: Duration) {
        let grace = self.grace.min(idle_timeout);
        sleep(grace).await;
        let reclaimed = async {
            loop {
                self.reclaim.notified().await;
                if self.has_waiters() {
                    return;
                }
            }
        };
        tokio::select! {
            () = sleep(idle_timeout - grace) => {}
            () = reclaimed => {}
        }
    }

    /// Returns when the rest of a handshake, of a header or of a body is overdue: after `within`, and while a client
    /// waits for a slot after the grace. All overdue connections end then, since their clients can open as many again
    /// at once.
    pub(crate) async fn wait_until_overdue(&self, within: Duration) {
        let grace = self.grace.min(within);
        sleep(grace).await;
        let mut has_waiters = self.has_waiters.subscribe();
        tokio::select! {
            () = sleep(within - grace) => {}
            _ = has_waiters.wait_for(|has_waiters| *has_waiters) => {}
        }
    }

    /// Whether a client waits for a slot.
    pub(super) fn has_waiters(&self) -> bool {
        *self.has_waiters.borrow()
    }
}
