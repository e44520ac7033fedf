//! The HTTP edge of a service: the server with its limits, the reading of requests, the answers that are
//! problems, the API's description, pages, the change feed, and the probes and books.
//!
//! Promise: every request gets an answer in bounded time and bounded memory, and that answer states whether
//! something was stored. A handler that turns the error of a COMMIT into "nothing was stored" breaks that
//! promise.

pub mod books;
pub mod cached_answer;
pub(crate) mod call_target;
pub(crate) mod caller_shares;
pub mod callers;
pub mod change_feed;
pub(crate) mod connection;
pub mod commands;
pub mod extractors;
pub mod headers;
pub mod health;
pub mod idempotent;
pub(crate) mod instrument;
pub(crate) mod login_retry;
pub(crate) mod limits;
pub(crate) mod listeners;
pub mod openapi;
mod openapi_compatibility;
mod openapi_responses;
pub mod pagination;
pub mod problem;
pub mod server;
pub(crate) mod slots;
pub mod sse;
pub(crate) mod tls;
pub mod webhooks;
