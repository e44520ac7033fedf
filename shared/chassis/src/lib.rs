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
//! - [`Timer`], [`SetTimer`], [`CancelTimer`]: what is due later
//! - [`Call`], [`Request`], [`Answered`], [`CallResult`], [`call_target!`]: what is asked of a system outside
//! - [`Webhook`], [`WebhookSource`](http::webhooks::WebhookSource): what a system outside tells
//! - [`Task`], [`Question`], [`AnsweredTask`]: what a person decides
//! - [`Command`], [`Decision`], [`Commands`], [`Reply`], [`Idempotent`], [`Problem`],
//!   [`PageLimit`], [`Caller`]: what clients request, and who they are
//! - [`books`], [`CachedAnswer`], [`openapi`], [`ChangeFeed`], [`Republish`], [`CompactedTopic`]: what a service may add
//!
//! It is the face of two crates: `holdfast-messaging` and `holdfast-host`, which has the process around it.
//! `docs/architecture.md` of the repository has the layers of their folders, and what each may import.

#![warn(missing_docs)]

#[doc(hidden)]
pub use host::testing;

pub use derive::{Event, Outcome, Record};
#[doc(inline)]
pub use host::{
    admin, call_target, config, db,
    http::{
        self, books,
        cached_answer::CachedAnswer,
        callers::caller::Caller,
        change_feed::{ChangeFeed, FeedEntry},
        commands::{CommandExecutor, Commands, Reply},
        extractors::{EmptyBody, Json, Path, Query},
        headers::{LastEventId, PreferWait},
        idempotent::{GeneratedKey, Idempotent, OptionalKey},
        openapi,
        pagination::PageLimit,
        problem::Problem,
        sse::ServerSentEvent,
    },
    service::{self, Consumer, Service, ServiceLoop, frontend::Frontend, process::main},
};
#[doc(inline)]
pub use messaging::{
    commands::{
        self,
        command::{Accepted, Command, Decision},
    },
    consumer::{self, handlers::Handlers, lag::ConsumerLag},
    dead_letter::discard_impact::{DiscardImpact, Remedy, WriteOff},
    event::{
        self, Answered, AnsweredTask, Call, CallResult, CancelTimer, CloseTasks, DataClass,
        DeclaredEvent, Effects, Event, HandlerContext, HandlerResult, Isolation, MakeCall, Method,
        OpenTask, Outcome, Question, Request, Retention, SetTimer, SettleCalls, Subscriptions,
        Task, Timer, TimerKey, Topic, Unprocessable, Webhook,
    },
    flow::heartbeat::{Heartbeat, Heartbeats},
    inbox,
    integer::deserialize_integer,
    kafka::{
        self,
        compacted_topic::{CompactedTopic, SnapshotReader},
    },
    outbox::{
        self,
        relay::Relay,
        republish_source::{PublishedEvent, Republish, RepublishSource},
    },
    telemetry::labels::label_request,
    unit_of_work::{
        self, Loads, UnitOfWork, loader::Loader, record::Record, table::Table,
        write_batch::WriteBatch,
    },
    unprocessable,
};
