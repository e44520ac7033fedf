//! The native stack and what is proved on it: real Kafka, a real schema registry and a real
//! PostgreSQL cluster for each service, started on loopback beside the services.
//!
//! # Layout
//! - `topology`: what the stack consists of; `ports`: where it is reached; `settings`: with which
//!   settings each member runs.
//! - `stack`: the stack as a whole; `member`: start, stop, kill and pause one of it.
//! - `compose`: the same in containers, for `STACK=compose`.
//! - `preparation`: what has to be there before a member can start.
//! - `readiness`: whether a member answers.
//! - `process`: one detached process, known by more than its pid; `ends`: how each ended.
//! - `parts`: Kafka, registry and PostgreSQL, fetched once into a cache.
//! - `client`: the services as their clients see them; `outcome`: what those are told; `wait`: asking until
//!   it is right; `figures`: as people read them.
//! - `seed`: demo items and customers.
//! - `load`: orders at a fixed rate; `plan`: what its clients want; `told`: what each was told, and
//!   whether it is true; `history`: all of them together.
//! - `demo`: the story; `outage`: a load, a victim and the proof; `progress`: who stands still;
//!   `narration`: how both speak.
//! - `brokers`: two more of them, so that one can be lost.
//! - `proxy`: a way between two that can fail; `pairs`: one between each service and each of its
//!   dependencies; `sabotage`: what is done to databases; `strangers`, `replays`: what is put into
//!   topics, and read again; `raw_record`: what no client of ours could put there.
//! - `chaos`: the long run; `round`: one of its rounds; `fault`: what is drawn for it; `nemesis`: who
//!   carries that out; `chaos_report`: what is told.
//! - `faults`: neighbours and surroundings that misbehave.
//! - `crash_points`: services that die at the worst moments, on purpose.
//! - `long_outage`: stock away for minutes, and what that leaves behind; `hostile`: clients that mean
//!   no good.
//! - `announce`, `rebuild`, `trail`: what operators ask for.
//! - `invariants`: what must always hold, and by which name; `verify`: the checker; `rest`: what it
//!   waits for; `checks`, `arrivals`, `audit`, `balances`, `inboxes`: what must hold; `topics`,
//!   `said`, `facts`: what lies in Kafka; `witness`, `changes`: what the databases themselves saw;
//!   `discarded`: what operators gave up; `findings`, `verdict`: what is off; `sights`: what was seen
//!   to happen.
//! - `metrics`, `leaders`, `footprint`: what services say of themselves, who relays, and what all of it
//!   takes up.
//! - `bugs`: bugs that are put into a scratch copy, and what catches each; `trial`: the load and the
//!   trouble that does; `scratch`: a copy of the checkout, to be changed and built.
//! - `template`: a service of your own.
//! - `letters`: dead letters on the command line.

pub mod faults;
pub mod topology;
pub mod ports;
mod settings;
pub mod stack;
mod layout;
pub mod member;
pub mod compose;
mod preparation;
mod readiness;
pub mod process;
pub mod ends;
pub mod parts;
pub mod client;
pub mod outcome;
pub mod wait;
pub mod figures;
pub mod seed;
pub mod load;
pub mod plan;
pub mod told;
pub mod history;
pub mod narration;
pub mod demo;
pub mod announce;
pub mod rebuild;
pub mod trail;
pub mod outage;
pub mod long_outage;
pub mod hostile;
pub mod progress;
pub mod brokers;
pub mod proxy;
pub mod pairs;
pub mod sabotage;
pub mod strangers;
mod raw_record;
pub mod replays;
pub mod fault;
pub mod nemesis;
pub mod round;
pub mod chaos;
pub mod chaos_report;
pub mod crash_points;
pub mod invariants;
pub mod verify;
mod rest;
pub mod audit;
pub mod verdict;
pub mod checks;
pub mod arrivals;
pub mod facts;
pub mod balances;
pub mod inboxes;
pub mod findings;
pub mod topics;
mod said;
pub mod witness;
pub mod changes;
pub mod sights;
pub mod metrics;
pub mod leaders;
pub mod footprint;
pub mod scratch;
pub mod trial;
pub mod bugs;
pub mod template;
pub mod discarded;
pub mod letters;

pub use ports::Ports;
pub use stack::Stack;
