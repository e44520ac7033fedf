//! Orders: one is found by its id or its customer, its way through the services is a picture, and the oldest pending
//! ones are listed with what they wait for.

mod causes;
mod detail;
mod find;
pub mod pending;
mod picture;
mod stuck;
mod timeline;

use axum::Router;
use axum::routing::get;

use crate::app::App;

/// The service that decides orders.
pub const DECIDER: &str = "order";

pub fn router() -> Router<App> {
    Router::new()
        .route("/orders", get(find::show))
        .route("/orders/stuck/events", get(stuck::follow))
        .route("/orders/{order_id}", get(detail::show))
}
