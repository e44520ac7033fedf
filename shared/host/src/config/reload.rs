//! Secrets and certificates may change while the process runs: an operator replaces their files.
//! [`crate::service`] reads the files again at an interval; a refused login requests it at once
//! ([`messaging::flow::reload`]).

use sha2::{Digest, Sha256};

use crate::config::Secret;

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
