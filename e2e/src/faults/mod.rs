//! What can be broken around a service, for tests: neighbours and surroundings that misbehave.

pub mod file_limit;
pub mod kept_connections;
pub mod log_tail;
pub mod nginx;
pub mod registry_gateway;
pub mod transactional_producer;
pub mod wrong_clock;
