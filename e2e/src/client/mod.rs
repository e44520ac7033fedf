//! The services as their clients see them: over HTTP and Kafka, without code of the services. A
//! client distinguishes three outcomes of a command (accepted, refused, unknown) and records every
//! response, so that the checker can compare them with the databases. A client that treats an
//! unknown outcome as a refusal breaks this, and so does one that parses responses with code of the
//! services.

pub mod addresses;
pub mod client_history;
pub mod http_client;
pub mod identity;
pub mod kafka;
pub mod operator;
pub mod order;
pub mod order_plan;
pub mod outcome;
pub(crate) mod raw_record;
pub mod sample_events;
pub mod tokens;
