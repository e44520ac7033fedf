#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

// The derive names the chassis.
#[cfg(test)]
extern crate self as chassis;
#[cfg(test)]
use messaging::{event, unit_of_work};

// From the lowest layer to the highest.
pub mod config;
pub(crate) mod telemetry;

pub mod db;
pub mod http;

pub mod admin;

pub mod service;

#[doc(hidden)]
pub mod testing;

#[cfg(test)]
mod tests;
