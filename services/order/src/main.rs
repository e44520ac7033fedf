//! The order service takes orders and decides each one: it is the only decider of the saga.
//!
//! `POST /orders` publishes `orders.created`, and payment and stock answer. If both accept, the service publishes
//! `orders.confirmed`. After the first no, a customer's cancel or the deadline, it publishes `orders.cancelled`. Payment
//! and stock then undo what they did. Each of them publishes that, unless its answer was a no. Prices come from a read
//! model of `stock.items`.

mod order; // the aggregate: its rules and its SQL
mod saga; // what events and commands cause
mod discard; // what a discarded event costs, where that can be remedied or has to be written off
mod api; // what clients may request
mod books; // whether the rows are consistent, and their sums
mod read_model; // rebuilds the read model of items from its topic
mod pending_orders; // which orders are stuck, for operators
mod deadline; // cancels orders that wait for too long, if a deadline is set
#[cfg(test)]
mod tests;

use chassis::{Republish, Routers, Service};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> std::process::ExitCode {
    chassis::main("order", env!("CARGO_PKG_VERSION"), sqlx::migrate!(), serve)
}

async fn serve(service: Service, settings: deadline::Settings) -> anyhow::Result<()> {
    // One database, three loops around it.
    let (commands, executor) = service.commands();
    let relay = service.relay(&events::TOPICS);
    let consumer = service
        .consumer()
        .on(saga::payment_verified)
        .on_discard(discard::response)
        .on(saga::payment_declined)
        .on_discard(discard::response)
        .on(saga::payment_refunded)
        .on_discard(discard::refund)
        .on(saga::stock_reserved)
        .on_discard(discard::response)
        .on(saga::stock_rejected)
        .on_discard(discard::response)
        .on(saga::stock_released)
        .on_discard(discard::release)
        .on(saga::item_changed);
    let sweep = deadline::sweep(&settings, &service, commands.clone(), consumer.lag());

    let admin = consumer.admin().merge(service.republish([order::Order::source()]));
    let admin = admin.merge(pending_orders::router(service.db.clone()));
    let routers = Routers {
        api: api::router(service.db.clone(), commands, service.change_feed()),
        books: books::router(service.db.clone()),
        admin: admin.merge(read_model::router(service.db.clone(), service.compacted_topic())),
    };
    service.run(routers, [executor.into(), relay.into(), consumer.into(), sweep]).await
}
