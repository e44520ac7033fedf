//! A load: orders at a fixed rate, drawn from a seed, and what became of each. The load is an open loop, so a
//! slow answer delays no other client and shows as latency. Each client asks with its key until its order is
//! settled, and each order is followed until it has ended. The promise is that no order of a load is left out
//! of the summary. A closed loop breaks it, and so does a client that gives up on an unknown outcome.

mod drain;
pub mod history_check;
pub mod load;
pub mod load_summary;
pub mod options;
pub mod plan;
pub mod resource_usage;
pub mod seed;
pub mod stall_detector;
