//! A bounded queue whose reader may wait for a number of items, and is woken once for all of them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::Instant;

use crate::flow::linger::LingerLimits;

/// The reader waits for no number of items.
const NONE_WANTED: usize = usize::MAX;

/// What the ends of a queue share while its reader waits.
struct Fill {
    /// The number of items in the queue that the reader waits for.
    wanted: AtomicUsize,
    /// When an item last arrived while the reader waited, in microseconds since the queue was made.
    arrived_micros: AtomicU64,
    made_at: Instant,
    reached: Notify,
}

pub(crate) struct BatchSender<T> {
    items: mpsc::Sender<T>,
    fill: Arc<Fill>,
}

pub(crate) struct BatchReceiver<T> {
    items: mpsc::Receiver<T>,
    fill: Arc<Fill>,
}

/// Room for one item.
pub(crate) struct BatchPlace<'a, T> {
    place: mpsc::Permit<'a, T>,
    queue: &'a BatchSender<T>,
}

/// A queue with room for so many items.
pub(crate) fn batch_queue<T>(capacity: usize) -> (BatchSender<T>, BatchReceiver<T>) {
    let (sender, receiver) = mpsc::channel(capacity);
    let fill = Arc::new(Fill {
        wanted: AtomicUsize::new(NONE_WANTED),
        arrived_micros: AtomicU64::new(0),
        made_at: Instant::now(),
        reached: Notify::new(),
    });
    (BatchSender { items: sender, fill: fill.clone() }, BatchReceiver { items: receiver, fill })
}

impl<T> Clone for BatchSender<T> {
    fn clone(&self) -> Self {
        BatchSender { items: self.items.clone(), fill: self.fill.clone() }
    }
}

impl<T> BatchSender<T> {
    /// Adds an item, unless the queue is full or its reader is gone.
    pub(crate) fn try_send(&self, item: T) -> Result<(), mpsc::error::TrySendError<T>> {
        self.items.try_send(item)?;
        self.note_arrival();
        Ok(())
    }

    /// Waits for room. `None` if the reader is gone.
    pub(crate) async fn reserve(&self) -> Option<BatchPlace<'_, T>> {
        let place = self.items.reserve().await.ok()?;
        Some(BatchPlace { place, queue: self })
    }

    fn note_arrival(&self) {
        // The reader sets what it wants and then counts; a sender adds and then looks what is wanted.
        fence(Ordering::SeqCst);
        let wanted = self.fill.wanted.load(Ordering::Relaxed);
        if wanted == NONE_WANTED {
            return;
        }
        let micros = self.fill.made_at.elapsed().as_micros();
        self.fill.arrived_micros.store(micros as u64, Ordering::Relaxed);
        let queued = self.items.max_capacity() - self.items.capacity();
        if queued >= wanted && self.fill.wanted.swap(NONE_WANTED, Ordering::Relaxed) != NONE_WANTED
        {
            self.fill.reached.notify_one();
        }
    }
}

impl<T> BatchPlace<'_, T> {
    pub(crate) fn send(self, item: T) {
        self.place.send(item);
        self.queue.note_arrival();
    }
}

impl<T> BatchReceiver<T> {
    pub(crate) async fn recv_many(&mut self, batch: &mut Vec<T>, max: usize) -> usize {
        self.items.recv_many(batch, max).await
    }

    pub(crate) fn try_recv(&mut self) -> Option<T> {
        self.items.try_recv().ok()
    }

    /// Waits until the queue holds so many items, or until a limit: none arrived for a while, or the time is up.
    pub(crate) async fn wait_for(&self, count: usize, limits: LingerLimits) {
        let began = Instant::now();
        while self.items.len() < count {
            self.fill.wanted.store(count, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            let arrived = Duration::from_micros(self.fill.arrived_micros.load(Ordering::Relaxed));
            let idle_until = began.max(self.fill.made_at + arrived) + limits.idle_gap;
            let until = idle_until.min(began + limits.max_wait);
            if self.items.len() >= count || Instant::now() >= until {
                break;
            }
            let _ = tokio::time::timeout_at(until, self.fill.reached.notified()).await;
        }
        self.fill.wanted.store(NONE_WANTED, Ordering::Relaxed);
    }
}
