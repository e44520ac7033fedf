//! How soon after one batch the next may begin.
//!
//! A batch costs the same half a dozen round trips whether it holds one event or a hundred. Under load
//! a loop that begins again at once makes many small ones, and the machine is busy with the trips. So
//! after a batch a loop rests in proportion to how long it took, and takes what came meanwhile: the
//! busier the machine, the longer batches take, and the larger they become. Who comes alone finds the
//! rest long over, or none, and waits for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// No rest is longer: batches that take longer are large enough. Measured with 1,024 callers: where a
/// rest may be 50 ms, a fifth of the machine is idle, and a tenth fewer orders end.
const REST_MAX: Duration = Duration::from_millis(10);

/// Of one loop, or of several that take from one queue.
pub(crate) struct Pace {
    /// From the beginning of a batch to that of the next, in times that the last batch took.
    apart: f64,
    began: Instant,
    took_micros: Arc<AtomicU64>,
}

/// Of one batch: what it took counts when this is dropped.
pub(crate) struct Lap {
    began: Instant,
    took_micros: Arc<AtomicU64>,
    /// False after a batch of one: the next may begin at once.
    counts: bool,
}

impl Pace {
    pub(crate) fn of(apart: f64) -> Pace {
        Pace { apart, began: Instant::now(), took_micros: Arc::default() }
    }

    /// Waits until a batch may begin; hold the lap for as long as it takes. One that is `full` could
    /// not become larger by waiting, and begins at once.
    pub(crate) async fn next(&mut self, full: bool) -> Lap {
        let took = Duration::from_micros(self.took_micros.load(Ordering::Relaxed));
        let now = Instant::now();
        let next = (self.began + took.mul_f64(self.apart)).min(now + REST_MAX);
        if next > now && !full {
            sleep_until(next).await;
        }
        self.began = Instant::now();
        Lap { began: self.began, took_micros: self.took_micros.clone(), counts: true }
    }

    /// [`Pace::next`] for a batch that was taken from a queue: what came meanwhile joins it.
    ///
    /// After a batch of one there is no rest: nothing had come meanwhile, and of the two answers that a
    /// lone order waits for, one comes right after the other.
    pub(crate) async fn fill<T>(
        &mut self,
        batch: &mut Vec<T>,
        max: usize,
        waiting: &mut mpsc::Receiver<T>,
    ) -> Lap {
        let mut lap = self.next(batch.len() == max).await;
        while batch.len() < max
            && let Ok(more) = waiting.try_recv()
        {
            batch.push(more);
        }
        lap.counts = batch.len() > 1;
        lap
    }
}

impl Drop for Lap {
    fn drop(&mut self) {
        let took = if self.counts { self.began.elapsed() } else { Duration::ZERO };
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.took_micros.store(micros, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::time::sleep;

    use super::*;

    const TOOK: Duration = Duration::from_millis(5);

    /// How long the next batch has to wait after one that took so long.
    async fn rest_after(took: Duration) -> Duration {
        let mut pace = Pace::of(2.0);
        let lap = pace.next(false).await;
        sleep(took).await;
        drop(lap);
        let ended = Instant::now();
        drop(pace.next(false).await);
        ended.elapsed()
    }

    #[tokio::test]
    async fn a_loop_rests_as_long_as_its_batch_took_and_not_for_ever() {
        let rested = rest_after(TOOK).await;
        assert!(rested > TOOK / 2, "{rested:?}");
        let rested = rest_after(100 * REST_MAX).await;
        assert!(rested < 50 * REST_MAX, "{rested:?}");
    }

    #[tokio::test]
    async fn a_batch_that_hung_does_not_keep_the_others_of_its_queue_waiting() {
        let mut pace = Pace::of(0.5);
        let hung = pace.next(false).await;
        sleep(100 * REST_MAX).await;
        let _other = pace.next(false).await;
        drop(hung);
        let asked = Instant::now();
        drop(pace.next(false).await);
        assert!(asked.elapsed() < 50 * REST_MAX, "{:?}", asked.elapsed());
    }

    #[tokio::test]
    async fn who_comes_when_the_rest_is_over_does_not_wait() {
        let mut pace = Pace::of(2.0);
        let lap = pace.next(false).await;
        sleep(TOOK).await;
        let took = lap.began.elapsed();
        drop(lap);
        sleep(took + TOOK).await;
        assert!(pace.next(false).now_or_never().is_some());
    }

    #[tokio::test]
    async fn nobody_rests_after_a_batch_of_one() {
        let mut pace = Pace::of(2.0);
        let (_sender, mut waiting) = mpsc::channel::<i32>(3);
        let lap = pace.fill(&mut vec![1], 2, &mut waiting).await;
        sleep(TOOK).await;
        drop(lap);
        assert!(pace.fill(&mut vec![2], 3, &mut waiting).now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_batch_is_filled_with_what_came_meanwhile_and_a_full_one_does_not_wait() {
        let mut pace = Pace::of(2.0);
        let lap = pace.next(false).await;
        sleep(TOOK).await;
        drop(lap);
        let (sender, mut waiting) = mpsc::channel(3);
        for nth in [2, 3, 4] {
            sender.send(nth).await.unwrap();
        }
        let mut full = vec![1, 2];
        assert!(pace.fill(&mut full, 2, &mut waiting).now_or_never().is_some());
        let mut batch = vec![1];
        drop(pace.fill(&mut batch, 3, &mut waiting).await);
        assert_eq!((full, batch), (vec![1, 2], vec![1, 2, 3]));
    }
}
