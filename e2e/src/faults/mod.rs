//! What can be broken around a service, for tests: neighbours and surroundings that misbehave.

pub mod file_limit;
pub mod kept_connections;
pub mod nginx;
pub mod registry_gateway;
pub mod wrong_clock;
