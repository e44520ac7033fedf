#![doc = include_str!("../README.md")]
//!
//! # What a service uses
//!
//! A service imports its names from the root, `use chassis::{…}`:
//! - [`main`], [`Service`], [`ServiceLoop`], [`Handlers`]: the process, its three ports and its loops
//! - [`UnitOfWork`], [`Loads`], [`Record`], [`Table`], [`WriteBatch`]: the rows of one batch, loaded and saved
//!   together
//! - [`Event`], [`Topic`], [`HandlerContext`], [`HandlerResult`], [`Outcome`], [`unprocessable!`],
//!   [`DiscardImpact`]: what events cause
//! - [`Command`], [`Decision`], [`Commands`], [`Reply`], [`Idempotent`], [`Problem`],
//!   [`PageLimit`], [`Caller`]: what clients request, and who they are
//! - [`books`], [`CachedAnswer`], [`openapi`], [`ChangeFeed`], [`Republish`], [`CompactedTopic`]: what a service may add
//!
//! `docs/architecture.md` of the repository has the layers of its folders, and what each may import.

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
pub use commands::command::{Accepted, Command, Decision};
pub use commands::idempotent::{GeneratedKey, Idempotent, OptionalKey};
pub use commands::reply::Reply;
pub use commands::{CommandExecutor, Commands};
pub use consumer::Consumer;
pub use consumer::handlers::Handlers;
pub use consumer::lag::ConsumerLag;
pub(crate) use crash_point::crash_point;
pub use db::horizon::Horizon;
pub use dead_letter::discard_impact::{DiscardImpact, Remedy, WriteOff};
pub use derive::{Event, Outcome, Record};
pub use event::{
    DataClass, DeclaredEvent, Event, HandlerContext, HandlerResult, Isolation, Outcome,
    OutgoingEvents, Retention, Subscriptions, Topic, Unprocessable,
};
pub use flow::heartbeat::{Heartbeat, Heartbeats};
pub use http::books;
pub use http::cached_answer::CachedAnswer;
pub use http::callers::caller::Caller;
pub use http::change_feed::{ChangeFeed, FeedEntry};
pub use http::extractors::{EmptyBody, Json, Path, Query, deserialize_integer};
pub use http::headers::{LastEventId, PreferWait};
pub use http::openapi;
pub use http::pagination::PageLimit;
pub use http::problem::Problem;
pub use http::sse::ServerSentEvent;
pub use kafka::compacted_topic::{CompactedTopic, Payload, SnapshotReader};
pub use outbox::relay::Relay;
pub use service::frontend::Frontend;
pub use service::process::main;
pub use service::{Service, ServiceLoop};
pub use telemetry::labels::label_request;
pub use unit_of_work::loader::Loader;
pub use unit_of_work::record::Record;
pub use unit_of_work::table::Table;
pub use unit_of_work::write_batch::WriteBatch;
pub use unit_of_work::{Loads, UnitOfWork};
