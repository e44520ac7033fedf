//! Secrets and certificates may change while the process runs: an operator replaces their files.
//! [`crate::service`] reads the files again at an interval; a refused login does not wait for it. This module has
//! what the clients of the lower layers need for that.
//!
//! The environment belongs to the process, and so does the request to read it again.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::config::Secret;

/// How long to wait after a refused login before the next one, while the files are read again.
pub(crate) const LOGIN_RETRY_INTERVAL: Duration = Duration::from_millis(100);

static REQUEST: Notify = Notify::const_new();

/// Requests that the files are read again at once. A request during a read is lost, so a caller repeats it for as
/// long as its login is refused.
pub(crate) fn request() {
    REQUEST.notify_waiters();
}

pub(crate) async fn requested() {
    REQUEST.notified().await;
}

/// A digest of secrets and of the content of files, by which a change is recognised.
pub(crate) fn fingerprint(secrets: &[Option<&Secret>], files: &[Option<&str>]) -> Vec<u8> {
    let mut digest = Sha256::new();
    let mut add = |part: Option<&[u8]>| {
        let part = part.unwrap_or_default();
        digest.update(part.len().to_be_bytes());
        digest.update(part);
    };
    for secret in secrets {
        add(secret.map(|secret| secret.expose().as_bytes()));
    }
    for file in files {
        // A directory of certificates is not compared: its files cannot be replaced at one moment.
        let content = file.and_then(|file| std::fs::read(file).ok());
        add(content.as_deref());
    }
    digest.finalize().to_vec()
}
