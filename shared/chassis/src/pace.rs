//! Who waits a little, so that batches are not small.
//!
//! A batch costs the same half a dozen round trips whether it holds one event or a hundred, here, in
//! Postgres and in Kafka: some 3 ms of processor in all, measured on two cores that run everything. Under
//! load a loop that begins again at once makes many small ones, and the machine is busy with the trips.
//!
//! So in a crowd, who comes first waits a little for others, and the relay rests a little before it looks
//! again. What was committed together stays together, though each partition brings its own piece.
//!
//! Nobody waits for more than came lately: clients who ask again when they have their answer come as many as
//! they came before, and once they are there, all that could come is. That leaves time to wait for the last
//! of them. Measured in turn with batches that went once nobody had come for 3 ms, orders a second in closed
//! loops: 2 callers 189 and 173, and not 83; 16 callers 987 and 999, and not 393 and 401; 256 callers 4,073
//! and 3,619, and not 3,541 and 3,504; 1,024 callers the same. Where orders come whether others have ended
//! or not, at half of the highest rate, each was decided after 57 and 62 ms at the median, and not 69, and
//! cost 484 us of processor, and not 597.
//!
//! Who comes alone, and not right after a crowd, waits for nothing.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep};

/// For how long after one of their batches those who come are taken for a crowd still.
const CROWDED_FOR: Duration = Duration::from_millis(200);

/// How often who waits looks for who came. Woken by each, it would cost what is to be spared.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// By one part in so many, fewer are expected after each batch to which fewer came.
const FEWER: usize = 8;

/// What a crowd is to one loop, or to several that take from one queue, and whether there is one.
pub(crate) struct Crowd {
    /// So many in one batch.
    from: usize,
    until: Instant,
    /// So many came together lately.
    expected: usize,
}

/// How long who comes first in a crowd waits for others, while there are fewer than came lately.
#[derive(Clone, Copy)]
pub(crate) struct Wait {
    pub at_most: Duration,
    /// Since the last one came.
    pub in_vain: Duration,
}

impl Crowd {
    pub(crate) fn of(from: usize) -> Crowd {
        Crowd { from, until: Instant::now(), expected: 0 }
    }

    /// Fills a batch that was taken from a queue with those who came meanwhile, and in a crowd with
    /// those who come a moment later.
    pub(crate) async fn fill<T>(
        &mut self,
        batch: &mut Vec<T>,
        max: usize,
        waiting: &mut mpsc::Receiver<T>,
        wait: Wait,
    ) {
        if self.is_here() {
            let enough = self.expected.min(max);
            let mut there = batch.len() + waiting.len();
            let (asked, mut came_at) = (Instant::now(), Instant::now());
            while there < enough {
                let in_vain = came_at + wait.in_vain;
                let until = in_vain.min(asked + wait.at_most);
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                sleep(left.min(LOOK_EVERY)).await;
                let before = there;
                there = batch.len() + waiting.len();
                if there > before {
                    came_at = Instant::now();
                }
            }
        }
        while batch.len() < max
            && let Ok(more) = waiting.try_recv()
        {
            batch.push(more);
        }
        self.came(batch.len());
    }

    /// For a loop without a queue, whose rows wait in a table: rests, in a crowd.
    pub(crate) async fn rest(&self, rest: Duration) {
        if self.is_here() {
            sleep(rest).await;
        }
    }

    /// So many came together.
    pub(crate) fn came(&mut self, together: usize) {
        let fewer = self.expected - self.expected.div_ceil(FEWER);
        self.expected = together.max(fewer);
        if together >= self.from {
            self.until = Instant::now() + CROWDED_FOR;
        }
    }

    fn is_here(&self) -> bool {
        Instant::now() < self.until
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    const SOON: Duration = Duration::from_millis(5);

    /// The machine stands still for less than it is waited in vain.
    const WAIT: Wait = Wait { at_most: Duration::from_secs(4), in_vain: Duration::from_secs(1) };

    /// Three are a crowd, and there was one a moment ago, for long; and so many came lately.
    fn crowded(expected: usize) -> Crowd {
        Crowd { from: 3, until: Instant::now() + 100 * CROWDED_FOR, expected }
    }

    #[tokio::test]
    async fn in_a_crowd_who_comes_first_waits_for_others_but_not_in_vain() {
        let (sender, mut waiting) = mpsc::channel(8);
        let later = tokio::spawn(async move {
            sleep(SOON).await;
            sender.send(2).await.unwrap();
            sender
        });
        let (mut batch, asked) = (vec![1], Instant::now());
        crowded(9).fill(&mut batch, 9, &mut waiting, WAIT).await;
        assert_eq!(batch, [1, 2]);
        assert!(asked.elapsed() >= WAIT.in_vain, "one more could have come");
        assert!(asked.elapsed() < WAIT.at_most, "nobody came in the next second");
        drop(later.await.unwrap());
    }

    #[tokio::test]
    async fn while_others_come_who_came_first_waits_but_not_for_ever() {
        let wait = Wait { at_most: WAIT.in_vain, in_vain: WAIT.in_vain / 2 };
        let (sender, mut waiting) = mpsc::channel(1_000);
        let others = tokio::spawn(async move {
            for nth in 2..1_000 {
                sleep(SOON).await;
                sender.send(nth).await.unwrap();
            }
        });
        let (mut batch, asked) = (vec![1], Instant::now());
        crowded(1_000).fill(&mut batch, 1_000, &mut waiting, wait).await;
        assert!(asked.elapsed() >= wait.at_most);
        assert!(!others.is_finished(), "others come for five seconds");
        others.abort();
    }

    #[tokio::test]
    async fn nobody_waits_for_more_than_came_lately_nor_for_more_than_a_batch_takes() {
        for (expected, max) in [(2, 9), (9, 2)] {
            let (sender, mut waiting) = mpsc::channel(8);
            let mut full = vec![1, 2];
            let filled = crowded(expected).fill(&mut full, max, &mut waiting, WAIT).now_or_never();
            assert!(filled.is_some());
            sender.send(2).await.unwrap();
            let mut filled = vec![1];
            assert!(
                crowded(expected)
                    .fill(&mut filled, max, &mut waiting, WAIT)
                    .now_or_never()
                    .is_some()
            );
            assert_eq!((full, filled), (vec![1, 2], vec![1, 2]));
            let later = tokio::spawn(async move {
                sleep(SOON).await;
                sender.send(2).await.unwrap();
                sender
            });
            let (mut filling, asked) = (vec![1], Instant::now());
            crowded(expected).fill(&mut filling, max, &mut waiting, WAIT).await;
            assert_eq!(filling, [1, 2]);
            assert!(asked.elapsed() < WAIT.in_vain, "all were there after 5 ms");
            drop(later.await.unwrap());
        }
    }

    #[test]
    fn as_many_are_expected_as_came_lately_and_fewer_with_each_batch_to_which_fewer_came() {
        let mut crowd = Crowd::of(3);
        let mut expected_after = |together| {
            crowd.came(together);
            crowd.expected
        };
        assert_eq!([16, 1, 1, 13, 40].map(&mut expected_after), [16, 14, 12, 13, 40]);
        let until_alone = (0..100).take_while(|_| expected_after(1) > 1).count();
        assert!((10..20).contains(&until_alone), "{until_alone} batches");
        assert_eq!(expected_after(0), 0);
        assert_eq!(expected_after(0), 0);
    }

    #[tokio::test]
    async fn without_a_crowd_a_batch_takes_who_is_there_and_waits_for_nobody() {
        let (sender, mut waiting) = mpsc::channel(8);
        let mut crowd = Crowd::of(4);
        for nth in [2, 3, 4] {
            sender.send(nth).await.unwrap();
        }
        let mut batch = vec![1];
        assert!(crowd.fill(&mut batch, 3, &mut waiting, WAIT).now_or_never().is_some());
        assert_eq!(batch, [1, 2, 3]);
        assert!(crowd.rest(WAIT.at_most).now_or_never().is_some());
    }

    #[tokio::test]
    async fn so_many_at_once_are_a_crowd_for_a_while_and_fewer_are_none() {
        let (sender, mut waiting) = mpsc::channel(8);
        let mut crowd = Crowd::of(3);
        let before = crowd.until;
        assert!(crowd.fill(&mut vec![1, 2], 9, &mut waiting, WAIT).now_or_never().is_some());
        assert_eq!(crowd.until, before);
        for nth in [2, 3] {
            sender.send(nth).await.unwrap();
        }
        let asked = Instant::now();
        crowd.fill(&mut vec![1], 9, &mut waiting, WAIT).await;
        let first = crowd.until;
        assert!(first >= asked + CROWDED_FOR, "who joins makes a crowd too");
        crowd.came(2);
        assert_eq!(crowd.until, first);
        sleep(SOON).await;
        crowd.came(3);
        assert!(crowd.until > first);
        sleep(CROWDED_FOR * 2).await;
        assert!(crowd.fill(&mut vec![1], 9, &mut waiting, WAIT).now_or_never().is_some());
    }

    #[tokio::test]
    async fn in_a_crowd_a_loop_without_a_queue_rests() {
        let (crowd, asked) = (crowded(9), Instant::now());
        crowd.rest(SOON).await;
        assert!(asked.elapsed() >= SOON);
    }
}
