//! What can be broken around a service, for tests: neighbours and surroundings that misbehave.

pub mod registry_gateway;
