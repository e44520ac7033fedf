//! Faults around a service: its network, its database, its clock, its file descriptors, Kafka's log
//! and its neighbours. Every fault can be undone, and none needs code in a service: the service
//! under test is the shipped one. A fault that knows an order breaks this rule: such faults are in
//! `scenarios/order_faults`.

pub mod database_faults;
pub mod faulty_network;
pub mod file_limit;
pub mod keep_alive_clients;
pub mod links;
pub mod log_truncation;
pub mod nginx;
pub mod registry_gateway;
pub mod skewed_clock;
pub mod transactional_producer;
