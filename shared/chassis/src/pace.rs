//! Who waits a little, so that batches are not small.
//!
//! A batch costs the same half a dozen round trips whether it holds one event or a hundred, here, in
//! Postgres and in Kafka: some 3 ms of processor in all, measured on two cores that run everything. Under
//! load a loop that begins again at once makes many small ones, and the machine is busy with the trips.
//!
//! So in a crowd, who comes first waits a little for others, and the relay rests a little before it looks
//! again. What was committed together stays together, though each partition brings its own piece.
//!
//! Who comes alone, and not right after a crowd, waits for nothing.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until};

/// For how long after one of their batches those who come are taken for a crowd still.
const CROWDED_FOR: Duration = Duration::from_millis(200);

/// What a crowd is to one loop, or to several that take from one queue, and whether there is one.
pub(crate) struct Crowd {
    /// So many in one batch.
    from: usize,
    until: Instant,
}

/// How long who comes first in a crowd waits for others.
#[derive(Clone, Copy)]
pub(crate) struct Wait {
    pub at_most: Duration,
    /// Though nobody comes. Where those who could are all here, as clients are who ask again when they
    /// have their answer, to wait on would only hold them up.
    pub in_vain: Duration,
}

impl Crowd {
    pub(crate) fn of(from: usize) -> Crowd {
        Crowd { from, until: Instant::now() }
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
            let until = Instant::now() + wait.at_most;
            let mut before = 0;
            // Looked at a few times. Woken by each who comes, it would cost what is to be spared.
            loop {
                let there = batch.len() + waiting.len();
                if there == before || there >= max || Instant::now() >= until {
                    break;
                }
                before = there;
                sleep_until(until.min(Instant::now() + wait.in_vain)).await;
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

    /// Three are a crowd, and there was one a moment ago, for long.
    fn crowded() -> Crowd {
        Crowd { from: 3, until: Instant::now() + 100 * CROWDED_FOR }
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
        crowded().fill(&mut batch, 9, &mut waiting, WAIT).await;
        assert_eq!(batch, [1, 2]);
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
        crowded().fill(&mut batch, 1_000, &mut waiting, wait).await;
        assert!(asked.elapsed() >= wait.at_most);
        assert!(!others.is_finished(), "others come for five seconds");
        others.abort();
    }

    #[tokio::test]
    async fn a_full_batch_waits_for_nobody_and_one_that_fills_waits_no_longer() {
        let (sender, mut waiting) = mpsc::channel(8);
        let mut full = vec![1, 2];
        assert!(crowded().fill(&mut full, 2, &mut waiting, WAIT).now_or_never().is_some());
        sender.send(2).await.unwrap();
        let mut filled = vec![1];
        assert!(crowded().fill(&mut filled, 2, &mut waiting, WAIT).now_or_never().is_some());
        assert_eq!((full, filled), (vec![1, 2], vec![1, 2]));
        let later = tokio::spawn(async move {
            sleep(SOON).await;
            sender.send(2).await.unwrap();
            sender
        });
        let (mut filling, asked) = (vec![1], Instant::now());
        crowded().fill(&mut filling, 2, &mut waiting, WAIT).await;
        assert_eq!(filling, [1, 2]);
        assert!(asked.elapsed() < 2 * WAIT.in_vain, "it was full at the first look");
        drop(later.await.unwrap());
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
        let (crowd, asked) = (crowded(), Instant::now());
        crowd.rest(SOON).await;
        assert!(asked.elapsed() >= SOON);
    }
}
