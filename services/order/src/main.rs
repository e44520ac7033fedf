//! The order service takes orders and decides each one: the one decider of the saga.
//!
//! `POST /orders` publishes `orders.created`; payment and stock answer. Both yes:
//! `orders.confirmed`. The first no, a customer's cancel or the deadline: `orders.cancelled`, and
//! payment and stock undo what they did, and answer unless they had said no. Prices come from a
//! read model of `stock.items`.

mod order; // the aggregate: its rules and its SQL
mod saga; // what events and commands cause
mod api; // what clients ask for
mod rebuild; // what makes the read model of items anew
mod deadline; // what ends an order that nobody answers, if that is wanted
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use chassis::announce;
use chassis::process;
use chassis::service::{Routers, Service};

fn main() -> ExitCode {
    process::main("order", sqlx::migrate!(), serve)
}

async fn serve(service: Service, settings: deadline::Settings) -> anyhow::Result<()> {
    // One database, three loops around it.
    let (commands, writers) = service.commands();
    let relay = service.relay(&events::TOPICS);
    let consumer = service
        .consumer()
        .on(saga::payment_verified, saga::verification_discarded)
        .on(saga::payment_declined, saga::decline_discarded)
        .on(saga::payment_refunded, saga::refund_discarded)
        .on(saga::stock_reserved, saga::reservation_discarded)
        .on(saga::stock_rejected, saga::rejection_discarded)
        .on(saga::stock_released, saga::release_discarded)
        .on(saga::item_changed, saga::item_discarded);
    let sweep = deadline::sweep(settings, &service, commands.clone(), consumer.group());

    let routers = Routers {
        api: api::router(service.db.clone(), commands, service.watch()),
        books: api::books(service.db.clone()),
        operator: consumer
            .operator()
            .merge(service.announce([announce::of::<order::Order>()]))
            .merge(rebuild::router(service.db.clone(), service.state())),
    };
    service.run(routers, [writers.into(), relay.into(), consumer.into(), sweep]).await
}
