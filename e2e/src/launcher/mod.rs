//! The launcher starts, stops, kills and pauses a whole stack on this machine: the databases, Kafka, the
//! schema registry and the services, each a detached process with a log, a pid file and a supervisor that
//! writes down how it ended. It promises that all that is known about a stack is read from its directory and
//! from `/proc`: any number of launchers can work on one stack, and a launcher that was killed leaves nothing
//! that the next one does not find. The launcher knows no order: a service is a name in the list of services.
//! Code that keeps the state of a stack in memory breaks this, and so does a process that is started past
//! [`process::Process`].

mod addresses;
pub mod artifacts;
pub mod brokers;
pub(crate) mod class_archives;
mod component;
pub mod compose;
pub mod console;
pub mod directories;
pub mod eventually;
pub mod exit_journal;
pub mod format;
pub(crate) mod launch_config;
mod lifecycle;
pub mod ports;
pub mod proc_fs;
pub mod process;
pub(crate) mod provision;
pub(crate) mod readiness;
pub mod run_with_infrastructure;
pub mod stack;
mod stack_settings;
pub(crate) mod stack_state;
pub mod status;
pub mod topology;
