//! What can be broken around a service: its network, its database, its clock, its file descriptors, Kafka's log
//! and its neighbours. The promise is that every fault can be taken back, and that none needs code in a service:
//! a service under test is the one that is shipped. A fault that knows an order breaks it: such faults are in
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
