//! Requests to read secrets and certificates again: an operator replaces their files while the process runs, and a client
//! whose login is refused does not wait for the next regular read. The host reads them.
//!
//! The environment belongs to the process, and so does the request to read it again.

use std::time::Duration;

use tokio::sync::Notify;

/// How long to wait after a refused login before the next one, while the files are read again.
pub const LOGIN_RETRY_INTERVAL: Duration = Duration::from_millis(100);

static REQUEST: Notify = Notify::const_new();

/// Requests that the files are read again at once. A request during a read is lost, so a caller repeats it for as
/// long as its login is refused.
pub fn request() {
    REQUEST.notify_waiters();
}

pub async fn requested() {
    REQUEST.notified().await;
}
