#![doc = include_str!("../README.md")]
#![warn(missing_docs)]

mod event;
mod outcome;
mod record;

use syn::{DeriveInput, Error, parse_macro_input};

/// Implements `chassis::Record` for a struct. Each field is the column of its name.
///
/// - `#[record(table = "…", key = "…")]` on the struct names the table, and the field that is its key.
/// - `#[record(immutable)]` on a field leaves its column out of updates. `immutable` behind the key, on the struct,
///   says it of all fields: a row is never updated, so it is read without a lock, as an append-only table requires.
///
/// A struct that is no record does not compile, and the error points at the reason: a struct without a table, a key
/// or named fields, an enum, generic parameters, a field whose type no column can store, or an `#[sqlx(…)]` that
/// gives a column another name.
#[proc_macro_derive(Record, attributes(record))]
pub fn derive_record(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    record::expand(&input).unwrap_or_else(Error::into_compile_error).into()
}

/// Implements `chassis::Event` for a struct, declares its topic and makes both known to the program:
/// `#[event(topic = "orders.created", publisher = "order", key = "order_id")]`.
///
/// - `topic` is the topic. Its schema is the file `schemas/<topic>.avsc` of the crate or of a folder above it, and
///   `schema = …` is the text of another one.
/// - `publisher` is the one service that writes the topic, and `key` the field that is the key of its records.
/// - `personal("payment", "stock")`: its events are about persons, and these services alone may handle them.
/// - `days = 7` or `compacted`, `partitions = 6` and `read_committed` are for a topic that differs from
///   `chassis::Topic::new`.
///
/// A struct that is no event does not compile, and the error points at the reason.
#[proc_macro_derive(Event, attributes(event))]
pub fn derive_event(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    event::expand(&input).unwrap_or_else(Error::into_compile_error).into()
}

/// Implements `chassis::Outcome`. An enum is one of several outcomes: each variant holds one, or nothing. A struct is
/// several outcomes together, one in each field. `Outcome::EVENTS_MAX` says which ids their events have.
///
/// A type that is no outcome does not compile, and the error points at the reason: a struct without fields, a variant
/// with several or named fields, or a type within that is no outcome.
#[proc_macro_derive(Outcome)]
pub fn derive_outcome(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    outcome::expand(&input).unwrap_or_else(Error::into_compile_error).into()
}
