//! What every service stands on: one database and three loops around it. It has never heard of an
//! order.
//!
//! # Layout, in reading order
//!
//! What travels and what is touched:
//! - [`event`]: topics, events, what a handler may answer
//! - [`avro`]: the strict codec; `registry`: schema ids
//! - [`rows`]: the rows of one batch; [`writes`]: what it writes, as one statement
//!
//! The loops:
//! - [`commands`] with their [`reply`] and their `writer`, [`idempotency`]: clients' wishes, decided in
//!   batches, each once
//! - [`outbox`], [`relay`] with its `round`, its `floor` and its `producer`: events on their way to Kafka
//! - [`announce`]: what was published, once more
//! - [`consumer`], which reads `ahead` as a `member` of its [`group`] and stores its `offsets`, [`inbox`]:
//!   events on their way in, in `batches`, by their `route`, to their `effect`
//! - [`state`]: a topic of state, read whole
//! - `dead_letter`, [`loss`], `replay`, `pause`, `operator`: those that can't be handled, and what operators
//!   do about them
//! - `wake`: what one loop tells another; `pace`: who waits a little for others
//! - [`clock`]: how much time has passed; `sequences`: numbers that a failover set back
//! - [`db`], [`kafka`]: transactions, a loop's `session`, and what failures mean; every client setting with
//!   its reason; `sayings`: when a client is of no more use; `news`: what is worth a line
//!
//! The service around them:
//! - [`process`], [`service`] with its `life`, `supervise`, [`schema`]: from `main` to the exit code
//! - [`config`], [`environment`], [`http`], `limits`, `open_files`, [`extract`], [`headers`], [`pages`], [`problem`],
//!   [`probes`], [`books`]: its edge
//! - [`openapi`], [`watch`]: what clients read of the API, and what they wait for
//! - `telemetry`, `observe`: what an operator sees
//! - `crash`: where a process can be made to die, in tests

#![warn(missing_docs)]

pub mod event;
pub mod avro;
mod registry;
pub mod rows;
pub mod writes;

pub mod commands;
pub mod reply;
mod writer;
pub mod idempotency;
pub mod outbox;
pub mod relay;
mod round;
mod look;
mod floor;
mod producer;
pub mod announce;
pub mod consumer;
mod ahead;
mod member;
mod offsets;
pub mod group;
mod batches;
mod route;
mod effect;
pub mod inbox;
pub mod state;
mod dead_letter;
pub mod loss;
mod replay;
mod pause;
mod operator;
mod wake;
mod pace;
mod session;
pub mod clock;
mod sequences;
pub mod db;
pub mod kafka;
mod sayings;
mod news;

pub mod process;
pub mod service;
mod life;
mod supervise;
pub mod schema;
pub mod config;
pub mod environment;
pub mod http;
mod connection;
mod limits;
mod open_files;
pub mod extract;
pub mod headers;
pub mod pages;
pub mod problem;
pub mod probes;
pub mod books;
pub mod openapi;
pub mod watch;
mod telemetry;
mod observe;
mod crash;

#[doc(hidden)]
pub mod testing;

#[cfg(test)]
mod tests;
