//! Shares of places that are few: how many of them one caller may hold.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::http::callers::caller::Caller;

/// The places that each caller holds. A client of a service that knows no callers has no share: any may hold all.
#[derive(Clone, Default)]
pub(super) struct CallerShares(Arc<Mutex<HashMap<String, usize>>>);

/// A place that a caller holds until it is dropped.
pub(super) struct HeldPlace {
    shares: CallerShares,
    subject: Option<String>,
}

impl CallerShares {
    /// One more place for a caller; `None` if the caller holds `places_max` already.
    pub fn take(&self, caller: &Caller, places_max: usize) -> Option<HeldPlace> {
        let subject = caller.subject().map(str::to_owned);
        if let Some(subject) = &subject {
            let mut held = self.0.lock();
            let places = held.entry(subject.clone()).or_default();
            if *places >= places_max {
                return None;
            }
            *places += 1;
        }
        Some(HeldPlace { shares: self.clone(), subject })
    }
}

impl Drop for HeldPlace {
    fn drop(&mut self) {
        let Some(subject) = &self.subject else { return };
        let mut held = self.shares.0.lock();
        if let Some(places) = held.get_mut(subject) {
            *places -= 1;
            if *places == 0 {
                held.remove(subject);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_holds_no_more_than_a_share_and_leaves_nothing_behind() {
        let shares = CallerShares::default();
        let [ann, bob] = ["ann", "bob"].map(|name| Caller::named(name.into(), [].into()));
        let mut held = vec![shares.take(&ann, 2).unwrap(), shares.take(&ann, 2).unwrap()];
        assert!(shares.take(&ann, 2).is_none());
        held.push(shares.take(&bob, 2).unwrap());
        let unrestricted = Caller::unrestricted();
        held.extend((0..9).map(|_| shares.take(&unrestricted, 2).unwrap()));
        held.remove(0);
        assert!(shares.take(&ann, 2).is_some());
        drop(held);
        assert!(shares.0.lock().is_empty());
    }
}
