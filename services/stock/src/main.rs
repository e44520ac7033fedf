//! The stock service counts the units of each item, and reserves them for orders.
//!
//! For `orders.created` it reserves every line or nothing, and publishes `stock.reserved` or `stock.rejected`. For
//! `orders.cancelled` it releases what it reserved, and publishes `stock.released`, unless its answer was a no. It
//! publishes the present state of each item in `stock.items`. This service is the example to read: only this one has
//! both commands and state that others copy. `make service` writes the smaller service of `e2e/template`.

mod stock; // the aggregate: its rules and its SQL
mod saga; // what events and commands cause
mod discard; // what a discarded event costs, where that can be remedied or has to be written off
mod api; // what clients may request
#[cfg(test)]
mod tests;

use chassis::{Republish, Routers, Service};

/// The variables of this service, beside those of every service.
#[derive(clap::Args)]
struct Settings {
    /// ISO 4217 code of the currency of all prices.
    #[arg(long, env, default_value = "EUR", value_parser = events::parse_currency)]
    currency: String,
}

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chassis::main("stock", env!("CARGO_PKG_VERSION"), sqlx::migrate!(), serve)
}

async fn serve(service: Service, Settings { currency }: Settings) -> anyhow::Result<()> {
    // One database, three loops around it.
    let (commands, executor) = service.commands();
    let relay = service.relay(&events::TOPICS);
    let consumer = service
        .consumer()
        .on(saga::reserve_stock)
        .on_discard(discard::order)
        .on(saga::release_stock)
        .on_discard(discard::cancellation);

    let republished = [stock::Item::source(), stock::Reservation::source()];
    let routers = Routers {
        api: api::router(service.db.clone(), commands, currency),
        books: api::books(service.db.clone()),
        admin: consumer.admin().merge(service.republish(republished)),
    };
    service.run(routers, [executor.into(), relay.into(), consumer.into()]).await
}
