//! The proofs on the native stack, and the checks of the whole workspace.

mod structure;
mod launcher;
mod fixture;
mod saga;
mod outages;
mod crash_points;
mod faults;
mod redelivery;
mod hostile;
mod poison;
mod messaging;
mod rejected_records;
mod new_service;
mod republish;
mod contracts;
mod evolution;
mod upgrade;
mod dead_letters;
mod admin;
mod read_model;
mod timeline;
mod manifests;
mod environment;
mod mutants;
mod change_log;
mod checker;
