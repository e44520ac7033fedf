//! The request to read the files of the environment again: secrets and certificates, which an operator replaces
//! while the process runs. [`crate::service`] reads them at an interval; a refused login does not wait for it.
//!
//! The environment belongs to the process, and so does the request.

use std::time::Duration;

use tokio::sync::Notify;

/// How long to wait after a refused login before the next one, while the files are read again.
pub(crate) const LOGIN_RETRY_INTERVAL: Duration = Duration::from_millis(100);

static REQUEST: Notify = Notify::const_new();

/// Requests that the files are read again at once. A request during a read is lost, so a caller repeats it for as
/// long as its login is refused.
pub(crate) fn request() {
    REQUEST.notify_waiters();
}

/// Waits for the next request.
pub(crate) async fn requested() {
    REQUEST.notified().await;
}
