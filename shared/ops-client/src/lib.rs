#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod addresses;
mod client;
mod dead_letters;
mod error;
mod repair;
mod timeline;

pub use addresses::Addresses;
pub use client::{OpsClient, Port, Services};
pub use dead_letters::{
    DeadLetter, DeadLetterFilter, DeadLetterPage, DeadLetterSummary, DiscardImpact, Remedy,
    ReplayedPage, Settled, WAITING, WriteOff,
};
pub use error::{ServiceError, describe};
pub use repair::{
    ConsumerState, InboxCount, RepublishProgress, RepublishRequest, Rewind, RewindRequest,
};
pub use timeline::{Delivery, DeliveryState, PublishedEvent, Step, Timeline};
