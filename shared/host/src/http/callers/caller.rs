//! The caller of a request, as a handler sees it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The scope that reads what belongs to any owner.
const READS_ALL_OWNERS: &str = "support:read";

/// Who made a request, as an extractor of a handler.
///
/// A handler of things that have an owner asks [`Caller::owns`] before it changes one and [`Caller::may_read`] before it shows
/// one, and answers with 404 otherwise, as if the thing did not exist.
#[derive(Clone)]
pub struct Caller(Identity);

#[derive(Clone)]
enum Identity {
    /// No caller is known: the service knows none, or acts itself.
    Unrestricted,
    /// A request to a public route of a service that knows its callers.
    Anonymous,
    Named(Arc<Named>),
}

struct Named {
    subject: String,
    scopes: BTreeSet<String>,
}

/// Without the subject, which may be a person.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Identity::Unrestricted => "Caller(unrestricted)",
            Identity::Anonymous => "Caller(anonymous)",
            Identity::Named(_) => "Caller(named)",
        })
    }
}

impl Caller {
    /// For what a service does by itself: it owns everything.
    pub const fn unrestricted() -> Caller {
        Caller(Identity::Unrestricted)
    }

    pub(super) const fn anonymous() -> Caller {
        Caller(Identity::Anonymous)
    }

    pub(crate) fn named(subject: String, scopes: BTreeSet<String>) -> Caller {
        Caller(Identity::Named(Arc::new(Named { subject, scopes })))
    }

    /// The subject of the token: a person or a program. `None` if the service knows no callers.
    pub fn subject(&self) -> Option<&str> {
        match &self.0 {
            Identity::Named(named) => Some(&named.subject),
            Identity::Unrestricted | Identity::Anonymous => None,
        }
    }

    /// Whether the caller is this owner, or no caller is named.
    pub fn owns(&self, owner_id: Uuid) -> bool {
        match &self.0 {
            Identity::Unrestricted => true,
            Identity::Anonymous => false,
            Identity::Named(named) => named.subject.eq_ignore_ascii_case(&owner_id.to_string()),
        }
    }

    /// Whether the caller may see what belongs to this owner, as the owner and as a caller who reads for all.
    pub fn may_read(&self, owner_id: Uuid) -> bool {
        self.reads_all_owners() || self.owns(owner_id)
    }

    /// Whether the caller may see what belongs to any owner.
    pub fn reads_all_owners(&self) -> bool {
        self.is_unrestricted() || self.has_scope(READS_ALL_OWNERS)
    }

    /// Whether the token has this scope. Without a known caller it is not asked.
    pub(crate) fn has_scope(&self, scope: &str) -> bool {
        matches!(&self.0, Identity::Named(named) if named.scopes.contains(scope))
    }

    pub(super) fn is_unrestricted(&self) -> bool {
        matches!(self.0, Identity::Unrestricted)
    }

    /// The key under which a request of this caller is stored: two callers who draw the same key have nothing to do
    /// with each other. It is a hash, so that the table of keys holds no subject.
    pub(crate) fn idempotency_key(&self, key: String) -> String {
        let Some(subject) = self.subject() else { return key };
        let mut hash = Sha256::new();
        // With its length: no other subject and key have the same bytes.
        hash.update((subject.len() as u64).to_be_bytes());
        hash.update(subject);
        hash.update(key);
        format!("{:x}", hash.finalize())
    }
}
