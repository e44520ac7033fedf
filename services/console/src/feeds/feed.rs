//! An answer that is asked for in the background while pages are open.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The last answer to a question.
pub struct Feed<T>(Arc<Mutex<LastAnswer<T>>>);

struct LastAnswer<T> {
    /// With the time at which it arrived.
    answer: Option<(Arc<T>, Instant)>,
    asked_at: Option<Instant>,
}

impl<T> Default for Feed<T> {
    fn default() -> Self {
        Feed(Arc::new(Mutex::new(LastAnswer { answer: None, asked_at: None })))
    }
}

impl<T: Send + Sync + 'static> Feed<T> {
    /// The last answer, if it is no older than this.
    pub fn present(&self, shown_for: Duration) -> Option<Arc<T>> {
        let last = self.0.lock();
        let (answer, at) = last.answer.as_ref()?;
        (at.elapsed() < shown_for).then(|| answer.clone())
    }

    /// Keeps an answer.
    pub fn store(&self, answer: T) {
        self.0.lock().answer = Some((Arc::new(answer), Instant::now()));
    }

    /// Asks again, in the background, unless that was done within the interval. No answer takes the place of the last
    /// one too.
    pub fn refresh<F>(&self, interval: Duration, ask: impl FnOnce() -> F)
    where
        F: Future<Output = Option<T>> + Send + 'static,
    {
        let asked_at = Some(Instant::now());
        let mut last = self.0.lock();
        if last.asked_at.is_some_and(|at| at.elapsed() < interval) {
            return;
        }
        last.asked_at = asked_at;
        let (feed, ask) = (Feed(self.0.clone()), ask());
        tokio::spawn(async move {
            let answer = ask.await;
            let mut last = feed.0.lock();
            // A later question has a newer answer.
            if last.asked_at == asked_at {
                last.answer = answer.map(|answer| (Arc::new(answer), Instant::now()));
            }
        });
    }
}
