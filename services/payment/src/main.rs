//! The payment service keeps customers' accounts, and takes the money for orders.
//!
//! For `orders.created` it takes the total or nothing, and publishes `payments.verified` or `payments.declined`. For
//! `orders.cancelled` it gives the total back, and publishes `payments.refunded`, unless its answer was a no.

mod payment; // the aggregate: its rules and its SQL
mod saga; // what events and commands cause
mod discard; // what a discarded event costs, where that can be remedied or has to be written off
mod api; // what clients may request
#[cfg(test)]
mod tests;

use chassis::{Republish, Routers, Service};

/// The variables of this service, beside those of every service.
#[derive(clap::Args)]
struct Settings {
    /// ISO 4217 code of the currency of all accounts.
    #[arg(long, env, default_value = "EUR", value_parser = events::parse_currency)]
    currency: String,
}

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chassis::main("payment", env!("CARGO_PKG_VERSION"), sqlx::migrate!(), serve)
}

async fn serve(service: Service, Settings { currency }: Settings) -> anyhow::Result<()> {
    // One database, three loops around it.
    let (commands, executor) = service.commands();
    let relay = service.relay(&events::TOPICS);
    let consumer = service
        .consumer()
        .on(saga::verify_payment)
        .on_discard(discard::order)
        .on(saga::refund_payment)
        .on_discard(discard::cancellation);

    let routers = Routers {
        api: api::router(service.db.clone(), commands, currency),
        books: api::books(service.db.clone()),
        admin: consumer.admin().merge(service.republish([payment::Payment::source()])),
    };
    service.run(routers, [executor.into(), relay.into(), consumer.into()]).await
}
