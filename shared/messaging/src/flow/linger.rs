//! Lingering: under concurrency, a batch waits a little for more items, so that batches are not small.
//!
//! A batch costs the same round trips whether it holds one event or a hundred. A loop that begins its next batch
//! at once makes many small batches under load, and the machine is busy with round trips. So under concurrency the
//! first item of a batch waits for others, and the relay pauses before it polls again.
//!
//! The target size of a batch is the size of recent batches: in a closed loop the same clients return, so waiting
//! for more would be wasted. A single item that does not follow a concurrent batch waits for nothing.
//! `docs/decisions/0007` has the measurements.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, timeout_at};

/// How long after a concurrent batch lingering stays active.
const ACTIVE_FOR: Duration = Duration::from_millis(200);

/// A batch of its target size begins once nothing has arrived for this time. A batch that began at once would leave the
/// last items of a group behind. They would be a group of their own from then on, and the target would shrink to that.
const SETTLE_TIME: Duration = Duration::from_micros(300);

/// After each smaller batch the target size shrinks by this part of it.
const DECAY_DIVISOR: usize = 8;

/// The state of lingering of one loop, or of several loops that share a queue.
pub(crate) struct AdaptiveLinger {
    /// A batch of at least this many items counts as concurrent.
    siblings_min: usize,
    active_until: Instant,
    target_size: usize,
}

/// How long a batch below its target size lingers.
#[derive(Clone, Copy)]
pub(crate) struct LingerLimits {
    pub max_wait: Duration,
    /// Since the last arrival.
    pub idle_gap: Duration,
}

impl AdaptiveLinger {
    pub(crate) fn new(siblings_min: usize) -> AdaptiveLinger {
        AdaptiveLinger { siblings_min, active_until: Instant::now(), target_size: 0 }
    }

    /// Fills a batch with the items that are queued, and under concurrency with those that arrive a moment later.
    pub(crate) async fn collect<T>(
        &mut self,
        batch: &mut Vec<T>,
        max: usize,
        waiting: &mut mpsc::Receiver<T>,
        limits: LingerLimits,
    ) {
        if self.is_concurrent() {
            let until = Instant::now() + limits.max_wait;
            let enough = self.target_size.min(max);
            fill(batch, enough, waiting, until, limits.idle_gap).await;
            let mut is_settled = batch.len() < enough;
            while !is_settled && batch.len() < max && Instant::now() < until {
                sleep_briefly(SETTLE_TIME).await;
                is_settled = take_queued(batch, max, waiting) == 0;
            }
        }
        take_queued(batch, max, waiting);
        self.record_batch(batch.len());
    }

    /// Pauses under concurrency: for a loop without a queue, whose rows wait in a table.
    pub(crate) async fn pause(&self, rest: Duration) {
        if self.is_concurrent() {
            sleep(rest).await;
        }
    }

    pub(crate) fn record_batch(&mut self, size: usize) {
        let fewer = self.target_size - self.target_size.div_ceil(DECAY_DIVISOR);
        self.target_size = size.max(fewer);
        if size >= self.siblings_min {
            self.active_until = Instant::now() + ACTIVE_FOR;
        }
    }

    fn is_concurrent(&self) -> bool {
        Instant::now() < self.active_until
    }
}

/// Fills a batch until it has `enough` items, until nothing has arrived for `idle_gap`, or until the time is up.
async fn fill<T>(
    batch: &mut Vec<T>,
    enough: usize,
    waiting: &mut mpsc::Receiver<T>,
    until: Instant,
    idle_gap: Duration,
) {
    while batch.len() < enough {
        let arriving = waiting.recv_many(batch, enough - batch.len());
        let arrived = timeout_at(until.min(Instant::now() + idle_gap), arriving).await;
        if !matches!(arrived, Ok(1..)) {
            return;
        }
    }
}

/// Moves what is queued into a batch, and returns how many items those are.
fn take_queued<T>(batch: &mut Vec<T>, max: usize, waiting: &mut mpsc::Receiver<T>) -> usize {
    let before = batch.len();
    while batch.len() < max
        && let Ok(more) = waiting.try_recv()
    {
        batch.push(more);
    }
    batch.len() - before
}

/// Sleeps for less than a millisecond. The timer of tokio makes that one to two.
async fn sleep_briefly(duration: Duration) {
    let _ = spawn_blocking(move || std::thread::sleep(duration)).await;
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const SHORT_DELAY: Duration = Duration::from_millis(5);

    /// The idle gap is longer than any stall of the test machine.
    const LIMITS: LingerLimits =
        LingerLimits { max_wait: Duration::from_secs(4), idle_gap: Duration::from_secs(1) };

    /// Three items are concurrent, lingering is active for long, and recent batches had `expected` items.
    fn active_linger(expected: usize) -> AdaptiveLinger {
        AdaptiveLinger {
            siblings_min: 3,
            active_until: Instant::now() + 100 * ACTIVE_FOR,
            target_size: expected,
        }
    }

    #[tokio::test]
    async fn under_concurrency_a_batch_lingers_until_the_idle_gap() {
        let (sender, mut waiting) = mpsc::channel(8);
        let later = tokio::spawn(async move {
            sleep(SHORT_DELAY).await;
            sender.send(2).await.unwrap();
            sender
        });
        let (mut batch, asked) = (vec![1], Instant::now());
        active_linger(9).collect(&mut batch, 9, &mut waiting, LIMITS).await;
        assert_eq!(batch, [1, 2]);
        assert!(asked.elapsed() >= LIMITS.idle_gap, "one more could have arrived");
        assert!(asked.elapsed() < LIMITS.max_wait, "no item arrived in the next second");
        drop(later.await.unwrap());
    }

    #[tokio::test]
    async fn with_constant_arrivals_a_batch_lingers_no_longer_than_the_maximum() {
        let wait = LingerLimits { max_wait: LIMITS.idle_gap, idle_gap: LIMITS.idle_gap / 2 };
        let (sender, mut waiting) = mpsc::channel(1_000);
        let others = tokio::spawn(async move {
            for nth in 2..1_000 {
                sleep(SHORT_DELAY).await;
                sender.send(nth).await.unwrap();
            }
        });
        let (mut batch, asked) = (vec![1], Instant::now());
        active_linger(1_000).collect(&mut batch, 1_000, &mut waiting, wait).await;
        assert!(asked.elapsed() >= wait.max_wait);
        assert!(!others.is_finished(), "others arrive for five seconds");
        others.abort();
    }

    #[tokio::test]
    async fn a_batch_lingers_for_no_more_than_the_target_size_or_the_batch_limit() {
        for (expected, max) in [(2, 9), (9, 2)] {
            let (sender, mut waiting) = mpsc::channel(8);
            let later = tokio::spawn(async move {
                sleep(SHORT_DELAY).await;
                sender.send(2).await.unwrap();
                sender
            });
            let (mut filling, asked) = (vec![1], Instant::now());
            active_linger(expected).collect(&mut filling, max, &mut waiting, LIMITS).await;
            assert_eq!(filling, [1, 2]);
            let mut full = vec![1, 2];
            active_linger(expected).collect(&mut full, max, &mut waiting, LIMITS).await;
            assert_eq!(full, [1, 2]);
            assert!(asked.elapsed() < LIMITS.idle_gap, "all were there after 5 ms");
            drop(later.await.unwrap());
        }
    }

    /// A busy machine may stop the sender for longer than a batch settles, so one of twenty attempts is enough.
    #[tokio::test]
    async fn a_batch_of_its_target_size_waits_for_those_that_arrive_right_behind() {
        for _ in 0..20 {
            let (sender, mut waiting) = mpsc::channel(1_000);
            std::thread::spawn(move || {
                for nth in 2..100 {
                    std::thread::sleep(SETTLE_TIME / 10);
                    let _ = sender.blocking_send(nth);
                }
            });
            let mut batch = vec![1];
            active_linger(2).collect(&mut batch, 1_000, &mut waiting, LIMITS).await;
            if batch.len() > 20 {
                return;
            }
        }
        panic!("each batch began without the items right behind its last one");
    }

    #[test]
    fn the_target_size_follows_recent_batches_and_decays_with_smaller_ones() {
        let mut linger = AdaptiveLinger::new(3);
        let mut expected_after = |together| {
            linger.record_batch(together);
            linger.target_size
        };
        assert_eq!([16, 1, 1, 13, 40].map(&mut expected_after), [16, 14, 12, 13, 40]);
        let until_alone = (0..100).take_while(|_| expected_after(1) > 1).count();
        assert!((10..20).contains(&until_alone), "{until_alone} batches");
        assert_eq!(expected_after(0), 0);
        assert_eq!(expected_after(0), 0);
    }

    #[tokio::test]
    async fn without_concurrency_a_batch_takes_what_is_queued_and_does_not_linger() {
        let (sender, mut waiting) = mpsc::channel(8);
        let mut linger = AdaptiveLinger::new(4);
        for nth in [2, 3, 4] {
            sender.send(nth).await.unwrap();
        }
        let mut batch = vec![1];
        assert!(linger.collect(&mut batch, 3, &mut waiting, LIMITS).now_or_never().is_some());
        assert_eq!(batch, [1, 2, 3]);
        assert!(linger.pause(LIMITS.max_wait).now_or_never().is_some());
    }

    #[tokio::test]
    async fn enough_siblings_activate_lingering_for_a_while_and_fewer_do_not() {
        let (sender, mut waiting) = mpsc::channel(8);
        let mut linger = AdaptiveLinger::new(3);
        let before = linger.active_until;
        assert!(linger.collect(&mut vec![1, 2], 9, &mut waiting, LIMITS).now_or_never().is_some());
        assert_eq!(linger.active_until, before);
        for nth in [2, 3] {
            sender.send(nth).await.unwrap();
        }
        let asked = Instant::now();
        linger.collect(&mut vec![1], 9, &mut waiting, LIMITS).await;
        let first = linger.active_until;
        assert!(first >= asked + ACTIVE_FOR, "an arrival while lingering counts too");
        linger.record_batch(2);
        assert_eq!(linger.active_until, first);
        sleep(SHORT_DELAY).await;
        linger.record_batch(3);
        assert!(linger.active_until > first);
        sleep(ACTIVE_FOR * 2).await;
        assert!(linger.collect(&mut vec![1], 9, &mut waiting, LIMITS).now_or_never().is_some());
    }

    #[tokio::test]
    async fn under_concurrency_a_loop_without_a_queue_pauses() {
        let (linger, asked) = (active_linger(9), Instant::now());
        linger.pause(SHORT_DELAY).await;
        assert!(asked.elapsed() >= SHORT_DELAY);
    }
}
