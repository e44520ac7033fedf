//! Waits on a stack from outside: an attempt is repeated until it succeeds or its time is up.

use std::time::{Duration, Instant};

use anyhow::Result;

const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Repeats an attempt while its result is transient, for at most `timeout`, and returns the last
/// result.
pub async fn retry_while<T>(
    timeout: Duration,
    mut attempt: impl AsyncFnMut() -> T,
    is_transient: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + timeout;
    loop {
        let answer = attempt().await;
        if !is_transient(&answer) || Instant::now() > deadline {
            return answer;
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}

/// Repeats an attempt until it succeeds, for at most `timeout`, and returns the last error
/// otherwise, with `what` in its context. Every wait on a stack uses this function or
/// [`retry_while`].
///
/// # Errors
/// If no attempt has succeeded in that time.
pub async fn eventually<T>(
    what: &str,
    timeout: Duration,
    mut attempt: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        match attempt().await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("waited {} s for {what}", timeout.as_secs())));
            }
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}
