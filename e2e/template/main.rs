//! The shipping service records every order that was confirmed.
//!
//! For each `orders.confirmed` it stores a row, and it publishes nothing yet. `make service` wrote this service for
//! you to change. `services/stock` shows commands, and events that are published.

mod shipping; // the aggregate: its rules and its SQL
mod saga; // what events cause
mod api; // what clients may request
#[cfg(test)]
mod tests;

use chassis::{Routers, Service};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chassis::main("shipping", env!("CARGO_PKG_VERSION"), sqlx::migrate!(), serve)
}

/// The second argument holds the service's own settings: none.
async fn serve(service: Service, (): ()) -> anyhow::Result<()> {
    // One database and the loops around it; the first command adds a third loop, its executor.
    let relay = service.relay(&events::TOPICS);
    let consumer = service.consumer().on(saga::record_confirmed);

    let routers = Routers {
        api: api::router(service.db.clone()),
        books: api::books(service.db.clone()),
        admin: consumer.admin().merge(service.republish([])),
    };
    service.run(routers, [relay.into(), consumer.into()]).await
}
