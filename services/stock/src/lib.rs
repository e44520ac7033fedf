//! The stock service counts the units of each item, and reserves them for orders.
//!
//! For `orders.created` it reserves every line or nothing, and publishes `stock.reserved` or `stock.rejected`. For
//! `orders.cancelled` it releases what it reserved, and publishes `stock.released`, unless its answer was a no. It
//! publishes the present state of each item in `stock.items`. This service is the example to read: only this one has
//! both commands and state that others copy. `make service` writes the smaller service of `e2e/template`.

mod stock; // the aggregate: its rules and its SQL
pub mod saga; // what events and commands cause
mod discard; // what a discarded event costs, where that can be remedied or has to be written off
pub mod api; // what clients may request
#[cfg(test)]
mod tests;

pub use stock::*;

use chassis::{Handlers, Republish, Service};

/// What the service does with the events of others.
pub fn handlers() -> Handlers<Warehouse> {
    Handlers::new()
        .on_with(saga::reserve_stock, discard::order)
        .on_with(saga::release_stock, discard::cancellation)
}

/// The variables of this service, beside those of every service.
#[derive(clap::Args)]
pub struct Settings {
    /// ISO 4217 code of the currency of all prices.
    #[arg(long, env, default_value = "EUR", value_parser = events::parse_currency)]
    currency: String,
}

/// Runs the service until it stops.
pub async fn serve(service: Service, Settings { currency }: Settings) -> anyhow::Result<()> {
    // One database, three loops around it.
    let (commands, executor) = service.commands();
    let relay = service.relay();
    let consumer = service.consumer(handlers());

    let republished = [stock::Item::source(), stock::Reservation::source()];
    let admin = consumer.admin().merge(service.republish(republished));
    let api = api::router(service.db.clone(), commands, currency);
    service.run(api, api::BOOKS, admin, [executor.into(), relay.into(), consumer.into()]).await
}
