//! A load: orders at a fixed rate, drawn from a seed, and the outcome of each. The load is an open
//! loop, so a slow response delays no other client and shows as latency. Each client repeats its
//! request with its key until its outcome is settled, and each order is followed until it has
//! ended. The summary contains every order of a load. A closed loop breaks this, and so does a
//! client that gives up on an unknown outcome.

mod drain;
pub mod history_check;
pub mod load;
pub mod load_summary;
pub mod options;
pub mod plan;
pub mod resource_usage;
pub mod seed;
pub mod stall_detector;
