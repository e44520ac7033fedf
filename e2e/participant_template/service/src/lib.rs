//! The fraud service is a participant of the saga: an order that asks it needs its yes.
//!
//! For `orders.created` it publishes `fraud.cleared` or `fraud.flagged`. For `orders.cancelled` it undoes what it did, and
//! publishes `fraud.withdrawn`, unless its answer was a no. `rule.rs` says which orders get a no.

mod response; // the aggregate: its rows and its SQL
mod rule; // which orders get a no: replace its example
pub mod saga; // what events cause
mod discard; // what a discarded event costs, where that can be remedied or has to be written off
pub mod api; // what clients may request
#[cfg(test)]
mod tests;

pub use response::*;
pub use rule::TOTAL_MAX_CENTS;

use chassis::{Handlers, Republish, Service};

/// What the service does with the events of others.
pub fn handlers() -> Handlers<Responses> {
    Handlers::new()
        .on_with(saga::answer, discard::order)
        .on_with(saga::undo, discard::cancellation)
}

/// Runs the service until it stops. The second argument holds the service's own settings: none.
pub async fn serve(service: Service, (): ()) -> anyhow::Result<()> {
    // One database, two loops around it.
    let relay = service.relay();
    let consumer = service.consumer(handlers());

    let admin = consumer.admin().merge(service.republish([Response::source()]));
    let api = api::router(service.db.clone());
    service.run(api, api::BOOKS, admin, [relay.into(), consumer.into()]).await
}
