//! How soon after one batch the next may begin, and who waits for others.
//!
//! A batch costs the same half a dozen round trips whether it holds one event or a hundred, here, in
//! Postgres and in Kafka: some 3 ms of processor in all. Under load a loop that begins again at once makes
//! many small ones, and the machine is busy with the trips. Two rules make them larger.
//!
//! After a batch a loop rests in proportion to how long it took, and takes what came meanwhile: the busier
//! the machine, the longer batches take, and the larger they become.
//!
//! In a crowd, who comes first waits a little for others. What was committed together then stays
//! together: it comes out of six partitions in as many pieces, and each would be a batch of its own.
//!
//! Who comes alone finds the rest long over, or none, and no crowd, and waits for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// No rest is longer: batches that take longer are large enough. Measured with 1,024 callers: where a
/// rest may be 50 ms, a fifth of the machine is idle, and a tenth fewer orders end.
const REST_MAX: Duration = Duration::from_millis(10);

/// For how long after a batch that was one it is taken for a crowd.
const CROWDED_FOR: Duration = Duration::from_millis(200);

/// When those who come are a crowd.
#[derive(Clone, Copy)]
pub(crate) struct Crowd {
    /// So many in one batch.
    pub from: usize,
    /// How long the first of them then waits for others.
    pub waits: Duration,
}

/// Of one loop, or of several that take from one queue.
pub(crate) struct Pace {
    /// From the beginning of a batch to that of the next, in times that the last batch took.
    apart: f64,
    crowd: Crowd,
    crowded_until: Instant,
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
    /// Of a loop in which nobody waits for others.
    pub(crate) fn of(apart: f64) -> Pace {
        Pace::in_crowds(apart, Crowd { from: usize::MAX, waits: Duration::ZERO })
    }

    pub(crate) fn in_crowds(apart: f64, crowd: Crowd) -> Pace {
        let now = Instant::now();
        Pace { apart, crowd, crowded_until: now, began: now, took_micros: Arc::default() }
    }

    /// Waits until a batch may begin; hold the lap for as long as it takes. One that is `full` could
    /// not become larger by waiting, and begins at once.
    pub(crate) async fn next(&mut self, full: bool) -> Lap {
        self.rest(full).await;
        self.begin()
    }

    /// [`Pace::next`] for a batch that was taken from a queue: what comes meanwhile joins it.
    ///
    /// After a batch of one there is no rest: nothing had come meanwhile, and of the two answers that a
    /// lone order waits for, one comes right after the other.
    pub(crate) async fn fill<T>(
        &mut self,
        batch: &mut Vec<T>,
        max: usize,
        waiting: &mut mpsc::Receiver<T>,
    ) -> Lap {
        let came = Instant::now();
        self.rest(batch.len() == max).await;
        self.join(batch, max, waiting);
        if Instant::now() < self.crowded_until {
            let until = came + self.crowd.waits;
            // Looked at a few times, since a full batch has nobody to wait for. Woken by each who comes, it
            // would cost what is to be spared.
            while batch.len() + waiting.len() < max && Instant::now() < until {
                sleep_until(until.min(Instant::now() + self.crowd.waits / 4)).await;
            }
            self.join(batch, max, waiting);
        }
        let mut lap = self.begin();
        lap.counts = batch.len() > 1;
        lap
    }

    async fn rest(&self, full: bool) {
        let took = Duration::from_micros(self.took_micros.load(Ordering::Relaxed));
        let now = Instant::now();
        let next = (self.began + took.mul_f64(self.apart)).min(now + REST_MAX);
        if next > now && !full {
            sleep_until(next).await;
        }
    }

    fn join<T>(&mut self, batch: &mut Vec<T>, max: usize, waiting: &mut mpsc::Receiver<T>) {
        while batch.len() < max
            && let Ok(more) = waiting.try_recv()
        {
            batch.push(more);
        }
        if batch.len() >= self.crowd.from {
            self.crowded_until = Instant::now() + CROWDED_FOR;
        }
    }

    fn begin(&mut self) -> Lap {
        self.began = Instant::now();
        Lap { began: self.began, took_micros: self.took_micros.clone(), counts: true }
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

    const CROWD: Crowd = Crowd { from: 3, waits: Duration::from_millis(300) };

    /// How long the first of the next batch waits, where one more comes a little later; and how many
    /// there are.
    async fn waits_after(so_many: i32, max: usize) -> (Duration, usize) {
        let mut pace = Pace::in_crowds(0.0, CROWD);
        let (sender, mut waiting) = mpsc::channel(8);
        for nth in 1..so_many {
            sender.send(nth).await.unwrap();
        }
        drop(pace.fill(&mut vec![0], so_many.try_into().unwrap(), &mut waiting).await);
        let asked = Instant::now();
        let later = tokio::spawn(async move {
            sleep(TOOK).await;
            sender.send(2).await
        });
        let mut batch = vec![1];
        drop(pace.fill(&mut batch, max, &mut waiting).await);
        let waited = asked.elapsed();
        later.await.unwrap().ok();
        (waited, batch.len())
    }

    #[tokio::test]
    async fn in_a_crowd_who_comes_first_waits_for_others_and_who_comes_alone_does_not() {
        let (waited, joined) = waits_after(3, 9).await;
        assert!(waited >= CROWD.waits && joined == 2, "{waited:?}, {joined}");
        let (waited, joined) = waits_after(2, 9).await;
        assert!(waited < CROWD.waits / 2 && joined == 1, "{waited:?}, {joined}");
        let (waited, joined) = waits_after(3, 1).await;
        assert!(waited < CROWD.waits / 2 && joined == 1, "full: {waited:?}, {joined}");
        let (waited, joined) = waits_after(3, 2).await;
        assert!(waited < CROWD.waits && joined == 2, "full later: {waited:?}, {joined}");
    }

    #[tokio::test]
    async fn a_crowd_is_over_soon_after_the_last_batch_that_was_one() {
        let mut pace = Pace::in_crowds(0.0, CROWD);
        let (_sender, mut waiting) = mpsc::channel(1);
        drop(pace.fill(&mut vec![1, 2, 3], 9, &mut waiting).await);
        sleep(CROWDED_FOR * 2).await;
        assert!(pace.fill(&mut vec![1], 9, &mut waiting).now_or_never().is_some());
    }
}
