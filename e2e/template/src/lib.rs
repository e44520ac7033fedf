//! The shop service records every purchase that was confirmed.
//!
//! For each `purchases.confirmed` it stores a row. `published.rs` says what it publishes. The service was generated for
//! you to change.

mod purchases; // the aggregate: its rows and its SQL
mod saga; // what events cause
mod published; // what the service publishes
mod api; // what clients may request
#[cfg(test)]
mod tests;

use chassis::{Handlers, Service};

/// What the service does with the events of others.
pub fn handlers() -> Handlers<purchases::Purchases> {
    Handlers::new().on(saga::record_confirmed)
}

/// Runs the service until it stops. The second argument holds the service's own settings: none.
pub async fn serve(service: Service, (): ()) -> anyhow::Result<()> {
    // One database and the loops around it; the first command adds a third loop, its executor.
    let relay = service.relay();
    let consumer = service.consumer(handlers());

    let admin = consumer.admin().merge(service.republish(published::sources()));
    let api = api::router(service.db.clone());
    service.run(api, api::BOOKS, admin, [relay.into(), consumer.into()]).await
}
