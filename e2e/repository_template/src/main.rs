//! The shop service accepts every request.
//!
//! For each `requests.created` it stores a row and publishes `shop.accepted`. It is a beginning for you to change.

mod requests; // the aggregate: its rows and its SQL
mod saga; // what events cause
mod api; // what clients may request
#[cfg(test)]
mod tests;

use chassis::{Republish, Routers, Service};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chassis::main("shop", env!("CARGO_PKG_VERSION"), sqlx::migrate!(), serve)
}

/// The second argument holds the service's own settings: none.
async fn serve(service: Service, (): ()) -> anyhow::Result<()> {
    let relay = service.relay(&events::TOPICS);
    let consumer = service.consumer().on(saga::accept_request);

    let routers = Routers {
        api: api::router(service.db.clone()),
        books: api::books(service.db.clone()),
        admin: consumer.admin().merge(service.republish([requests::Request::source()])),
    };
    service.run(routers, [relay.into(), consumer.into()]).await
}
