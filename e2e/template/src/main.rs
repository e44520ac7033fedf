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

use chassis::{Routers, Service};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chassis::main("shop", env!("CARGO_PKG_VERSION"), sqlx::migrate!(), serve)
}

/// The second argument holds the service's own settings: none.
async fn serve(service: Service, (): ()) -> anyhow::Result<()> {
    // One database and the loops around it; the first command adds a third loop, its executor.
    let relay = service.relay(&events::TOPICS);
    let consumer = service.consumer().on(saga::record_confirmed);

    let routers = Routers {
        api: api::router(service.db.clone()),
        books: api::books(service.db.clone()),
        admin: consumer.admin().merge(service.republish(published::sources())),
    };
    service.run(routers, [relay.into(), consumer.into()]).await
}
