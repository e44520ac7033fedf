//! The payment service keeps customers' accounts, and takes the money for orders.
//!
//! `orders.created` takes the total or nothing and is answered with `payments.verified` or
//! `payments.declined`; `orders.cancelled` gives it back and is answered with `payments.refunded`,
//! unless payment had said no.

mod payment; // the aggregate: its rules and its SQL
mod saga; // what events and commands cause
mod api; // what clients ask for
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use chassis::announce;
use chassis::process;
use chassis::service::{Routers, Service};

/// What this service reads from its environment beside what every service does.
#[derive(clap::Args)]
struct Settings {
    /// ISO 4217 code of the currency of all accounts.
    #[arg(long, env, default_value = "EUR", value_parser = events::currency)]
    currency: String,
}

fn main() -> ExitCode {
    process::main("payment", sqlx::migrate!(), serve)
}

async fn serve(service: Service, Settings { currency }: Settings) -> anyhow::Result<()> {
    // One database, three loops around it.
    let (commands, writers) = service.commands();
    let relay = service.relay(&events::TOPICS);
    let consumer = service
        .consumer()
        .on(saga::verify_payment, saga::order_discarded)
        .on(saga::refund_payment, saga::cancellation_discarded);

    let routers = Routers {
        api: api::router(service.db.clone(), commands, currency),
        books: api::books(service.db.clone()),
        operator: consumer.operator().merge(service.announce([announce::of::<payment::Payment>()])),
    };
    service.run(routers, [writers.into(), relay.into(), consumer.into()]).await
}
