//! The commands of an operator, as `make` offers them: dead letters, the timeline of an order,
//! republishing, rebuilding and erasing. They use the admin ports of the services, Kafka and the databases. A
//! changed path or field name of an admin port breaks them.

pub mod connector_container;
pub mod connectors;
pub mod dead_letters;
pub mod erasure;
pub mod hanging_transactions;
pub mod order_timeline;
pub mod republish;
pub mod rebuild;
pub mod reporting;
pub mod rewind;
