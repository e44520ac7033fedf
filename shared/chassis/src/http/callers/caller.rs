//! The caller of a request, as a handler sees it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The scope that reads what belongs to any customer.
const READS_ALL_CUSTOMERS: &str = "support:read";

/// Who made a request, as an extractor of a handler.
///
/// A handler of a customer's things asks [`Caller::owns`] before it changes one and [`Caller::may_read`] before it shows
/// one, and answers with 404 otherwise, as if the thing did not exist.
#[derive(Clone)]
pub struct Caller(Identity);

#[derive(Clone)]
enum Identity {
    /// No caller is known: the service knows none, or acts itself.
    Unrestricted,
    /// A request to a public route of a service that knows its callers.
    Anonymous,
    Known(Arc<Known>),
}

struct Known {
    subject: String,
    scopes: BTreeSet<String>,
}

/// Without the subject, which may be a customer.
impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Identity::Unrestricted => "Caller(unrestricted)",
            Identity::Anonymous => "Caller(anonymous)",
            Identity::Known(_) => "Caller(known)",
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

    pub(crate) fn known(subject: String, scopes: BTreeSet<String>) -> Caller {
        Caller(Identity::Known(Arc::new(Known { subject, scopes })))
    }

    /// The subject of the token: a customer, an operator or a program. `None` if the service knows no callers.
    pub fn subject(&self) -> Option<&str> {
        match &self.0 {
            Identity::Known(known) => Some(&known.subject),
            Identity::Unrestricted | Identity::Anonymous => None,
        }
    }

    /// Whether the caller is this customer, or no caller is known.
    pub fn owns(&self, customer_id: Uuid) -> bool {
        match &self.0 {
            Identity::Unrestricted => true,
            Identity::Anonymous => false,
            Identity::Known(known) => {
                let customer = customer_id.hyphenated().to_string();
                known.subject.eq_ignore_ascii_case(&customer)
            }
        }
    }

    /// Whether the caller may see what belongs to this customer: its owner may, and who reads for all customers.
    pub fn may_read(&self, customer_id: Uuid) -> bool {
        self.reads_all_customers() || self.owns(customer_id)
    }

    /// Whether the caller may see what belongs to any customer.
    pub fn reads_all_customers(&self) -> bool {
        match &self.0 {
            Identity::Unrestricted => true,
            Identity::Anonymous | Identity::Known(_) => self.has_scope(READS_ALL_CUSTOMERS),
        }
    }

    /// Whether the token has this scope. Without a known caller it is not asked.
    pub(crate) fn has_scope(&self, scope: &str) -> bool {
        matches!(&self.0, Identity::Known(known) if known.scopes.contains(scope))
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
