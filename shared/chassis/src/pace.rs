//! How soon after one batch the next may begin, and who waits for others.
//!
//! A batch costs the same half a dozen round trips whether it holds one event or a hundred, here, in
//! Postgres and in Kafka: some 3 ms of processor in all, measured on two cores that run everything. Under
//! load a loop that begins again at once makes many small ones, and the machine is busy with the trips.
//! Two rules make them larger.
//!
//! After a batch a loop rests in proportion to how long it took, and takes what came meanwhile: the busier
//! the machine, the longer batches take, and the larger they become.
//!
//! In a crowd, who comes first waits a little for others. So what was committed together stays together,
//! though six partitions bring it in as many pieces.
//!
//! Who comes alone, and not right after a crowd, waits for nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// No rest is longer: batches that take longer are large enough. Measured with 1,024 callers: where a
/// rest may be 50 ms, a fifth of the machine is idle, and a tenth fewer orders end.
const REST_MAX: Duration = Duration::from_millis(10);

/// For how long after one of their batches those who come are taken for a crowd still.
const CROWDED_FOR: Duration = Duration::from_millis(200);

/// When those who come are a crowd, and how long they wait then.
#[derive(Clone, Copy)]
pub(crate) struct Crowd {
    /// So many in one batch.
    pub from: usize,
    /// How long the next batch then waits for others, at most.
    pub waits: Duration,
    /// How long it waits though nobody comes. Where those who could are all here, as clients are who ask
    /// again when they have their answer, to wait on would only hold them up.
    pub in_vain: Duration,
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
        Pace::in_crowds(
            apart,
            Crowd { from: usize::MAX, waits: Duration::ZERO, in_vain: Duration::ZERO },
        )
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
            let mut before = 0;
            // Looked at a few times. Woken by each who comes, it would cost what is to be spared.
            loop {
                let there = batch.len() + waiting.len();
                if there == before || there >= max || Instant::now() >= until {
                    break;
                }
                before = there;
                sleep_until(until.min(Instant::now() + self.crowd.in_vain)).await;
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

    /// Three are a crowd. The machine stands still for less than it is waited in vain.
    const CROWD: Crowd =
        Crowd { from: 3, waits: Duration::from_secs(4), in_vain: Duration::from_secs(1) };

    /// In a crowd of long.
    fn crowded() -> Pace {
        let crowded_until = Instant::now() + 100 * CROWDED_FOR;
        Pace { crowded_until, ..Pace::in_crowds(0.0, CROWD) }
    }

    #[tokio::test]
    async fn in_a_crowd_who_comes_first_waits_for_others_but_not_in_vain() {
        let (sender, mut waiting) = mpsc::channel(8);
        let later = tokio::spawn(async move {
            sleep(TOOK).await;
            sender.send(2).await.unwrap();
            sender
        });
        let (mut batch, asked) = (vec![1], Instant::now());
        drop(crowded().fill(&mut batch, 9, &mut waiting).await);
        assert_eq!(batch, [1, 2]);
        assert!(asked.elapsed() < CROWD.waits, "nobody came in the next second");
        drop(later.await.unwrap());
    }

    #[tokio::test]
    async fn who_is_in_a_full_batch_waits_for_nobody_and_one_that_fills_goes() {
        let (sender, mut waiting) = mpsc::channel(8);
        let mut full = vec![1, 2];
        assert!(crowded().fill(&mut full, 2, &mut waiting).now_or_never().is_some());
        sender.send(2).await.unwrap();
        let mut filled = vec![1];
        assert!(crowded().fill(&mut filled, 2, &mut waiting).now_or_never().is_some());
        assert_eq!(filled, [1, 2]);
    }

    #[tokio::test]
    async fn so_many_in_one_batch_are_a_crowd_for_a_while_and_fewer_are_none() {
        let (_sender, mut waiting) = mpsc::channel(1);
        let mut pace = Pace::in_crowds(0.0, CROWD);
        assert!(pace.fill(&mut vec![1, 2], 9, &mut waiting).now_or_never().is_some());
        assert!(pace.crowded_until < pace.began);
        drop(pace.fill(&mut vec![1, 2, 3], 3, &mut waiting).await);
        assert!(pace.crowded_until > pace.began);
        sleep(CROWDED_FOR * 2).await;
        assert!(pace.fill(&mut vec![1], 9, &mut waiting).now_or_never().is_some());
    }
}
