//! The order service takes orders and decides each one: it is the only decider of the saga.
//!
//! `POST /orders` publishes `orders.created`, and the participants answer: payment and stock. If all accept, the service
//! publishes `orders.confirmed`. After the first no, a customer's cancel or the deadline, it publishes
//! `orders.cancelled`. The participants then undo what they did. Each of them publishes that, unless its answer was a
//! no. Prices come from a read model of `stock.items`.

mod order; // the aggregate: its rules and its SQL
pub mod saga; // what events and commands cause
mod discard; // what a discarded event costs, where that can be remedied or has to be written off
pub mod api; // what clients may request
mod books; // whether the rows are consistent, and their sums
mod read_model; // rebuilds the read model of items from its topic
mod rebuild_order; // rebuilds the row of an order from its history
mod asked; // which participants new orders ask
mod pending_orders; // which orders are stuck, for operators
mod deadline; // cancels orders that wait for too long, if a deadline is set
#[cfg(test)]
mod tests;

pub use order::*;

use chassis::{Handlers, Republish, Service};

use participants::{Asked, Payment, Stock};

/// What the service does with the events of others.
pub fn handlers() -> Handlers<Orders> {
    let handlers = Handlers::new();
    let handlers = answers_of::<Payment>(handlers);
    let handlers = answers_of::<Stock>(handlers);
    handlers.on(saga::item_changed).on_due(saga::overdue)
}

/// Adds the handlers of a participant's answers.
fn answers_of<P: Asked>(handlers: Handlers<Orders>) -> Handlers<Orders> {
    handlers
        .on_with(saga::answered::<P::Accepted>, discard::response)
        .on_with(saga::answered::<P::Refused>, discard::response)
        .on_with(saga::answered::<P::Undone>, discard::undone)
}

/// The variables of this service, beside those of every service.
#[derive(clap::Args)]
pub struct Settings {
    #[command(flatten)]
    deadline: deadline::Settings,
    #[command(flatten)]
    asked: asked::Settings,
}

/// Runs the service until it stops.
pub async fn serve(service: Service, settings: Settings) -> anyhow::Result<()> {
    // One database, three loops around it.
    let (commands, executor) = service.commands();
    let relay = service.relay();
    let consumer = service.consumer(handlers());
    let deadline = deadline::watch(&settings.deadline, &service);

    let admin = consumer.admin().merge(service.republish([order::Order::source()]));
    let admin = admin.merge(pending_orders::router(service.db.clone()));
    let admin = admin.merge(rebuild_order::router(service.db.clone()));
    let admin = admin.merge(read_model::router(service.db.clone(), service.compacted_topic()));
    let new_orders = api::NewOrders {
        also_asks: settings.asked.also_asks(),
        deadline: settings.deadline.deadline(),
    };
    let api = api::router(service.db.clone(), commands, service.change_feed(), new_orders);
    let loops = [executor.into(), relay.into(), consumer.into(), deadline];
    service.run(api, &books::BOOKS, admin, loops).await
}
