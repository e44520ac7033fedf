//! The native stack and what is proved on it: real Kafka, a real schema registry and a real
//! PostgreSQL cluster for each service, started on loopback beside the services.
//!
//! # Layout
//! - `topology`: what the stack consists of, its ports, and the settings each member runs with.
//! - `stack`: start, stop, kill, pause and look at the members.
//! - `preparation`: what has to be there before a member can start.
//! - `readiness`: whether a member answers.
//! - `process`: one detached process, known by more than its pid.
//! - `parts`: Kafka, registry and PostgreSQL, fetched once into a cache.
//! - `client`: the services as their clients see them.
//! - `seed`: demo articles and customers.
//! - `load`: orders at a fixed rate, with a client's history; `demo`: the story.
//! - `announce`, `rebuild`, `trail`: what operators ask for.
//! - `verify`: the checker; `checks`: what must hold; `audit`: what histories come to; `topics`:
//!   what lies in Kafka; `discarded`: what operators gave up.
//! - `template`: a service of your own.
//! - `letters`: dead letters on the command line.

pub mod topology;
pub mod stack;
mod preparation;
mod readiness;
pub mod process;
pub mod parts;
pub mod client;
pub mod seed;
pub mod load;
pub mod demo;
pub mod announce;
pub mod rebuild;
pub mod trail;
pub mod verify;
pub mod audit;
pub mod checks;
pub mod topics;
pub mod template;
pub mod discarded;
pub mod letters;

pub use stack::Stack;
pub use topology::Ports;
