//! The shipping service knows every order that was confirmed.
//!
//! `orders.confirmed` leaves a row here, and nothing is published yet: this is what `make service`
//! wrote, and yours to change. `services/stock` shows commands, and events in answer.

mod shipping; // the aggregate: its rules and its SQL
mod saga; // what events cause
mod api; // what clients ask for
#[cfg(test)]
mod tests;

use std::process::ExitCode;

use chassis::process;
use chassis::service::{Routers, Service};

fn main() -> ExitCode {
    process::main("shipping", sqlx::migrate!(), serve)
}

/// What this service alone reads from its environment stands in the second argument: nothing.
async fn serve(service: Service, (): ()) -> anyhow::Result<()> {
    // One database and the loops around it; with a first command comes the third, the writers.
    let relay = service.relay(&events::TOPICS);
    let consumer = service.consumer().on(saga::note_confirmed, saga::confirmation_discarded);

    let routers = Routers {
        api: api::router(service.db.clone()),
        books: api::books(service.db.clone()),
        operator: consumer.operator().merge(service.announce([])),
    };
    service.run(routers, [relay.into(), consumer.into()]).await
}
