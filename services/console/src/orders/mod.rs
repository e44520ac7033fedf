//! Orders: one is found by its id or its customer, its way through the services is a picture, and the oldest pending
//! ones are listed with what they wait for.

mod causes;
pub mod detail;
pub mod find;
mod picture;
pub mod stuck;
