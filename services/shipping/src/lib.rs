//! The shipping service ships confirmed orders at a carrier, which is a system outside.
//!
//! For `orders.confirmed` it books a parcel, and publishes `shipments.booked`. The carrier tells by webhooks that a parcel
//! is collected, delivered or lost, and the service then publishes `shipments.delivered` or `shipments.failed`. If the
//! carrier tells nothing, a timer leads to an inquiry, and after some inquiries an operator decides. This service is the
//! example of what is asked of and told by systems outside: calls, webhooks, timers and tasks.

mod carrier; // what is asked of the carrier, and what it tells
mod shipment; // the aggregate: its rows and its SQL
pub mod saga; // what all of that causes
pub mod api; // what clients may request
#[cfg(test)]
mod tests;

pub use carrier::*;
pub use shipment::*;

use chassis::http::webhooks::{StandardWebhooks, WebhookSource};
use chassis::{Handlers, Republish, Service};
use chrono::{DateTime, TimeDelta, Utc};

/// What the service does with the events of others, and with what comes from outside.
pub fn handlers() -> Handlers<Shipments> {
    Handlers::new()
        .on(saga::ship)
        .on_answer(saga::booked)
        .on_answer(saga::found)
        .on_answer(saga::cancelled)
        .on_due(saga::inquire)
        .on_delivery(saga::hear)
        .on_task(saga::decided)
}

/// The variables of this service, beside those of every service and `CARRIER_WEBHOOK_SECRET`.
#[derive(clap::Args)]
pub struct Variables {
    #[command(flatten)]
    carrier: CarrierSettings,
    /// For how many seconds the carrier may tell nothing of a shipment before it is asked.
    #[arg(long, env, default_value_t = 3_600, value_parser = clap::value_parser!(u32).range(1..))]
    news_seconds: u32,
    /// Orders that were confirmed before this time are not shipped, as in 2026-11-20T09:00:00Z. By default all are that
    /// Kafka still has.
    #[arg(long, env)]
    ship_since: Option<DateTime<Utc>>,
}

/// Runs the service until it stops.
pub async fn serve(service: Service, variables: Variables) -> anyhow::Result<()> {
    SETTINGS.get_or_init(|| Settings {
        news_after: TimeDelta::seconds(variables.news_seconds.into()),
        ship_since: variables.ship_since.unwrap_or_default(),
    });
    // One database, four loops around it.
    let (commands, executor) = service.commands();
    let relay = service.relay();
    let consumer = service.consumer(handlers());
    let calls = service.calls([variables.carrier.target()])?;
    let carrier = WebhookSource::new::<CarrierNews>("CARRIER_WEBHOOK_SECRET", StandardWebhooks);

    let admin = consumer.admin().merge(service.republish([Shipment::source()]));
    let api = api::router(service.db.clone(), commands).merge(service.webhooks([carrier])?);
    let loops = [executor.into(), relay.into(), consumer.into(), calls];
    service.run(api, api::BOOKS, admin, loops).await
}
