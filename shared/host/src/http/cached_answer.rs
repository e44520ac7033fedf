//! An answer that costs a query of many rows: it is computed for one caller at a time, and kept for those who accept an
//! older one.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::http::problem::Problem;

/// The last answer of this process, with the time at which its computation began.
pub struct CachedAnswer<T>(Mutex<Option<(Instant, T)>>);

impl<T> Default for CachedAnswer<T> {
    fn default() -> Self {
        CachedAnswer(Mutex::new(None))
    }
}

impl<T: Clone> CachedAnswer<T> {
    /// The last answer with its age, if it is no older than `max_age`, and otherwise the one that `compute` returns.
    /// Callers who come together wait for one computation, and share its answer if they accept its age. A problem is
    /// not kept.
    ///
    /// # Errors
    /// If the computation fails.
    pub async fn get(
        &self,
        max_age: Duration,
        compute: impl Future<Output = Result<T, Problem>>,
    ) -> Result<(T, Duration), Problem> {
        let mut last = self.0.lock().await;
        if let Some((began_at, answer)) = &*last
            && began_at.elapsed() <= max_age
        {
            return Ok((answer.clone(), began_at.elapsed()));
        }
        let began_at = Instant::now();
        let answer = compute.await?;
        *last = Some((began_at, answer.clone()));
        Ok((answer, began_at.elapsed()))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::join_all;
    use tokio::time::sleep;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn an_answer_is_computed_once_within_the_age_that_a_caller_accepts() {
        let (cached, computed) = (CachedAnswer::default(), AtomicU32::new(0));
        let get = async |max_age| {
            let compute = async {
                sleep(Duration::from_millis(20)).await;
                Ok(computed.fetch_add(1, Ordering::Relaxed) + 1)
            };
            cached.get(max_age, compute).await.unwrap()
        };
        let answers = join_all((0..9).map(|_| get(HOUR))).await;
        assert!(answers.iter().all(|(answer, _)| *answer == 1), "one computation for all");
        assert_eq!(get(Duration::ZERO).await.0, 2, "this caller accepts no older one");
        let (answer, age) = get(HOUR).await;
        assert!(answer == 2 && age >= Duration::from_millis(20), "{age:?}");
        assert_eq!(get(age).await.0, 3, "it is older now");
    }

    #[tokio::test]
    async fn a_failed_computation_is_not_kept() {
        let cached = CachedAnswer::default();
        assert!(cached.get(HOUR, async { Err(Problem::internal()) }).await.is_err());
        assert_eq!(cached.get(HOUR, async { Ok(7) }).await.unwrap().0, 7);
    }
}
