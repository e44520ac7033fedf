#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod access;
mod client;
mod event_producer;
mod openapi;
mod scheduled;
mod statements;
mod test_service;

pub use access::{ForOthers, RouteRequest, assert_access};
pub use client::{TestClient, TestResponse};
pub use event_producer::EventProducer;
pub use openapi::{compare_admin_openapi, compare_openapi};
pub use test_service::{OutboxRecord, TestService};
