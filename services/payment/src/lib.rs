//! The payment service keeps customers' accounts, and takes the money for orders.
//!
//! For `orders.created` it takes the total or nothing, and publishes `payments.verified` or `payments.declined`. For
//! `orders.cancelled` it gives the total back, and publishes `payments.refunded`, unless its answer was a no.

mod payment; // the aggregate: its rules and its SQL
pub mod saga; // what events and commands cause
mod discard; // what a discarded event costs, where that can be remedied or has to be written off
pub mod api; // what clients may request
#[cfg(test)]
mod tests;

pub use payment::*;

use chassis::{Handlers, Republish, Service};

/// What the service does with the events of others.
pub fn handlers() -> Handlers<Ledger> {
    Handlers::new()
        .on_with(saga::verify_payment, discard::order)
        .on_with(saga::refund_payment, discard::cancellation)
}

/// The variables of this service, beside those of every service.
#[derive(clap::Args)]
pub struct Settings {
    /// ISO 4217 code of the currency of all accounts.
    #[arg(long, env, default_value = "EUR", value_parser = events::parse_currency)]
    currency: String,
}

/// Runs the service until it stops.
pub async fn serve(service: Service, Settings { currency }: Settings) -> anyhow::Result<()> {
    // One database, three loops around it.
    let (commands, executor) = service.commands();
    let relay = service.relay();
    let consumer = service.consumer(handlers());

    let admin = consumer.admin().merge(service.republish([payment::Payment::source()]));
    let api = api::router(service.db.clone(), commands, currency);
    service.run(api, api::BOOKS, admin, [executor.into(), relay.into(), consumer.into()]).await
}
