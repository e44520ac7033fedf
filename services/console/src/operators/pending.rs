//! Sign-ins that were begun at the issuer and are not complete. They are kept in memory: an operator begins again after
//! a restart. Each is completed once, by the browser that began it, and within some minutes.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use openssl::error::ErrorStack;
use parking_lot::Mutex;

use crate::operators::encoding::random;

/// How long an operator may take at the issuer.
pub const SIGN_IN_TIMEOUT: Duration = Duration::from_secs(600);

/// Strangers can begin sign-ins. Beyond this number the oldest one has to begin again.
const PENDING_MAX: usize = 1_000;

/// One sign-in.
#[derive(Clone, Debug)]
pub struct SignInAttempt {
    /// The secret of PKCE, whose hash the issuer gets first.
    pub verifier: String,
    /// What the identity token has to name.
    pub nonce: String,
    /// Where the issuer sends the browser.
    pub redirect_uri: String,
    begun_at: Instant,
}

/// The sign-ins by their `state`.
#[derive(Default)]
pub struct PendingSignIns(Mutex<HashMap<String, SignInAttempt>>);

impl PendingSignIns {
    /// Begins a sign-in. Returns its state and its secrets.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn begin(&self, redirect_uri: String) -> Result<(String, SignInAttempt), ErrorStack> {
        let (verifier, nonce, begun_at) = (random()?, random()?, Instant::now());
        let attempt = SignInAttempt { verifier, nonce, redirect_uri, begun_at };
        let state = random()?;
        let mut pending = self.0.lock();
        if pending.len() >= PENDING_MAX {
            pending.retain(|_, attempt| attempt.begun_at.elapsed() < SIGN_IN_TIMEOUT);
        }
        if pending.len() >= PENDING_MAX
            && let Some(oldest) = pending.iter().min_by_key(|it| it.1.begun_at)
        {
            let oldest = oldest.0.clone();
            pending.remove(&oldest);
        }
        pending.insert(state.clone(), attempt.clone());
        Ok((state, attempt))
    }

    /// The sign-in with this state, which no later request finds again.
    pub fn take(&self, state: &str) -> Option<SignInAttempt> {
        let attempt = self.0.lock().remove(state);
        attempt.filter(|attempt| attempt.begun_at.elapsed() < SIGN_IN_TIMEOUT)
    }

    #[cfg(test)]
    pub fn set_age(&self, state: &str, age: Duration) {
        if let Some(attempt) = self.0.lock().get_mut(state) {
            attempt.begun_at = Instant::now() - age;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begin(pending: &PendingSignIns) -> String {
        pending.begin("http://localhost/sign-in/callback".to_string()).unwrap().0
    }

    #[test]
    fn a_sign_in_is_completed_once_and_in_time() {
        let pending = PendingSignIns::default();
        let (state, begun) = pending.begin("http://a".to_string()).unwrap();
        assert!(pending.take("another").is_none());
        assert_eq!(pending.take(&state).unwrap().verifier, begun.verifier);
        assert!(pending.take(&state).is_none(), "it was used");
        let state = begin(&pending);
        pending.set_age(&state, SIGN_IN_TIMEOUT);
        assert!(pending.take(&state).is_none(), "it has ended");
    }

    #[test]
    fn the_number_of_pending_sign_ins_is_bounded() {
        let pending = PendingSignIns::default();
        let first = begin(&pending);
        let others: Vec<String> = (0..PENDING_MAX).map(|_| begin(&pending)).collect();
        assert_eq!(pending.0.lock().len(), PENDING_MAX);
        assert!(pending.take(&first).is_none(), "the oldest has to begin again");
        assert!(pending.take(&others[0]).is_some());
        others.iter().for_each(|state| pending.set_age(state, SIGN_IN_TIMEOUT));
        begin(&pending);
        begin(&pending);
        assert_eq!(pending.0.lock().len(), 2, "those that have ended are removed");
    }
}
