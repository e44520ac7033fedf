//! Waiting from outside: asked again until the answer is right, within a bound.

use std::time::{Duration, Instant};

use anyhow::Result;

const POLL: Duration = Duration::from_millis(50);

/// Asks until what is told is more than for now, or for as long as `within`.
pub async fn ask_again<T>(
    within: Duration,
    mut ask: impl AsyncFnMut() -> T,
    for_now: impl Fn(&T) -> bool,
) -> T {
    let until = Instant::now() + within;
    loop {
        let told = ask().await;
        if !for_now(&told) || Instant::now() > until {
            return told;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Asks until the answer is right, or for as long as `within`; then the last wrong one is the error.
/// Every wait from outside goes through here, or through [`ask_again`].
pub async fn eventually<T>(
    what: &str,
    within: Duration,
    mut look: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match look().await {
            Ok(found) => return Ok(found),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("waited {} s for {what}", within.as_secs())));
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
