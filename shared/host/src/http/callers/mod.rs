//! The callers of a service: who makes a request, and what its token allows.
//!
//! Promise: where a service knows its callers, a handler runs only for a caller whose token an issuer has signed, is
//! valid now, and has a scope that the route's description lists. A route without such a description does not start,
//! and a router without this check answers 500. A handler that shows a customer's row without asking the `Caller`
//! breaks the promise for owners.

pub(crate) mod authorize;
pub mod caller;
pub(crate) mod identify;
mod keys;
mod signatures;
mod token;

#[cfg(test)]
mod tests;
