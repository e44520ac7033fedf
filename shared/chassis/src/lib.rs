#![doc = include_str!("../README.md")]
//!
//! # What a service uses
//!
//! A service imports its names from the root, `use chassis::{…}`:
//! - [`main`], [`Service`], [`Routers`], [`ServiceLoop`]: the process, its three ports and its loops
//! - [`UnitOfWork`], [`Loads`], [`Record`], [`Table`], [`WriteBatch`]: the rows of one batch, loaded and saved
//!   together
//! - [`Event`], [`Topic`], [`HandlerContext`], [`HandlerResult`], [`Outcome`], [`unprocessable!`],
//!   [`DiscardImpact`]: what events cause
//! - [`Commands`], [`Reply`], [`IdempotentRequest`], [`IdempotencyKey`], [`Problem`], [`PageLimit`], [`Caller`]: what
//!   clients request, and who they are
//! - [`books`], [`CachedAnswer`], [`openapi`], [`ChangeFeed`], [`Republish`], [`CompactedTopic`]: what a service may add
//!
//! # The layers
//!
//! A folder is a concept, and its `mod.rs` states its promise. A module imports only from its own layer and from
//! the layers before it in this list.
//! 1. `crash_point` kills the process at a named point, in tests only; [`config`] reads the environment;
//!    `telemetry` makes logs, traces and metrics; `flow` lets loops wake, yield to and wait for one another
//! 2. [`event`] declares topics and their codec; [`db`] and [`kafka`] are the clients of the two stores; [`http`]
//!    is the server with its limits, problems and extractors
//! 3. [`unit_of_work`] holds the rows of one batch in memory
//! 4. [`outbox`] publishes events, `dead_letter` stores records that cannot be handled, [`inbox`] recognises
//!    duplicates
//! 5. `transaction` is the one path of commands and events into the database
//! 6. [`commands`] and [`consumer`] are the loops that write
//! 7. [`admin`] is the operators' port: dead letters, the circuit breaker, republishing
//! 8. [`service`] joins the parts, from `main` to the exit code
//!
//! A fork may delete `kafka/compacted_topic`, `http/openapi` with its parts, `http/change_feed` with `http/sse`, and
//! `admin/republish`: only [`service`] and this file import them.

#![warn(missing_docs)]

// The derive names this crate from outside.
#[cfg(test)]
extern crate self as chassis;

// From the lowest layer to the highest.
mod crash_point;
pub mod config;
pub(crate) mod telemetry;
pub(crate) mod flow;

pub mod event;
pub mod db;
pub mod kafka;
pub mod http;

pub mod unit_of_work;

pub mod outbox;
mod dead_letter;
pub mod inbox;

mod transaction;

pub mod commands;
pub mod consumer;

pub mod admin;

pub mod service;

#[doc(hidden)]
pub mod testing;

#[cfg(test)]
mod tests;

pub use admin::republish::{PublishedEvent, Republish, RepublishSource};
pub use commands::idempotency::IdempotentRequest;
pub use commands::reply::Reply;
pub use commands::{CommandExecutor, Commands};
pub use consumer::Consumer;
pub use consumer::lag::ConsumerLag;
pub(crate) use crash_point::crash_point;
pub use db::horizon::Horizon;
pub use dead_letter::discard_impact::{DiscardImpact, Remedy, WriteOff};
pub use derive::Record;
pub use event::{
    DataClass, Event, HandlerContext, HandlerResult, Isolation, Outcome, Outgoing, Retention,
    Topic, Unprocessable,
};
pub use flow::heartbeat::{Heartbeat, Heartbeats};
pub use http::books;
pub use http::cached_answer::CachedAnswer;
pub use http::callers::caller::Caller;
pub use http::change_feed::{ChangeFeed, FeedEntry};
pub use http::extractors::{EmptyBody, Json, Path, Query, deserialize_integer};
pub use http::headers::{IdempotencyKey, LastEventId, OptionalIdempotencyKey, PreferWait};
pub use http::openapi;
pub use http::pagination::PageLimit;
pub use http::problem::Problem;
pub use http::sse::ServerSentEvent;
pub use kafka::compacted_topic::{CompactedTopic, Payload, SnapshotReader};
pub use outbox::relay::Relay;
pub use service::frontend::Frontend;
pub use service::process::main;
pub use service::{Routers, Service, ServiceLoop};
pub use telemetry::labels::label_request;
pub use unit_of_work::record::Record;
pub use unit_of_work::table::Table;
pub use unit_of_work::write_batch::WriteBatch;
pub use unit_of_work::{Loads, UnitOfWork};
