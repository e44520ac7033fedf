//! The fraud service is a participant of the saga: an order that asks it needs its yes.
//!
//! For `orders.created` it publishes `fraud.cleared` or `fraud.flagged`. For `orders.cancelled` it undoes what it did, and
//! publishes `fraud.withdrawn`, unless its answer was a no. What it cannot undo is `fraud.kept` until an operator settles
//! it. `rule.rs` says which orders get a no, and what cannot be undone.

mod response; // the aggregate: its rows and its SQL
mod rule; // which orders get a no, and what cannot be undone: replace its examples
pub mod saga; // what events and commands cause
mod discard; // what a discarded event costs, where that can be remedied or has to be written off
pub mod api; // what clients may request
#[cfg(test)]
mod tests;

pub use response::*;
pub use rule::{TOTAL_MAX_CENTS, UNDONE_MAX_CENTS};

use chassis::{Handlers, Republish, Service};

/// What the service does with the events of others.
pub fn handlers() -> Handlers<Responses> {
    Handlers::new()
        .on_with(saga::answer, discard::order)
        .on_with(saga::undo, discard::cancellation)
}

/// Runs the service until it stops. The second argument holds the service's own settings: none.
pub async fn serve(service: Service, (): ()) -> anyhow::Result<()> {
    // One database, three loops around it.
    let (commands, executor) = service.commands();
    let relay = service.relay();
    let consumer = service.consumer(handlers());

    let admin = consumer.admin().merge(service.republish([Response::source()]));
    let admin = admin.merge(api::operators_router(commands));
    let api = api::router(service.db.clone());
    service.run(api, api::BOOKS, admin, [executor.into(), relay.into(), consumer.into()]).await
}
