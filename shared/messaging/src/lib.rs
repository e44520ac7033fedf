#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

// The derive names the chassis.
#[cfg(test)]
extern crate self as chassis;

// From the lowest layer to the highest. Hidden is what only the host uses; the chassis exports the rest.
#[doc(hidden)]
pub mod crash_point;
pub mod integer;
#[doc(hidden)]
pub mod telemetry;
#[doc(hidden)]
pub mod flow;

pub mod event;
#[doc(hidden)]
pub mod db;
#[doc(hidden)]
pub mod kafka;

pub mod unit_of_work;

#[doc(hidden)]
pub mod outbox;
#[doc(hidden)]
pub mod dead_letter;
pub mod inbox;
pub mod scheduled;
#[doc(hidden)]
pub mod deliveries;
#[doc(hidden)]
pub mod calls;
#[doc(hidden)]
pub mod tasks;

#[doc(hidden)]
pub mod transaction;

#[doc(hidden)]
pub mod commands;
#[doc(hidden)]
pub mod consumer;
#[doc(hidden)]
pub mod call_loop;
