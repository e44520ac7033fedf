//! The connector that carries the outbox in place of the relay (`RELAY=cdc`): what the loop does that holds the relay's
//! lock.

pub mod connector;
pub mod schema_ids;

use std::time::{Duration, Instant};

use metrics::gauge;
use rdkafka::ClientConfig;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::outbox::Carrier;
use crate::outbox::cdc::connector::{Connector, SLOT_POLL_INTERVAL, is_carrying, report_nothing};
use crate::outbox::lag::OutboxLag;
use crate::outbox::relay::{Relay, Successor};
use crate::telemetry::log_throttle::LogThrottle;

/// How often the ids that the connector writes are compared with those of the registry.
const SCHEMA_IDS_INTERVAL: Duration = Duration::from_secs(10);

impl Successor for Connector {
    async fn can_take_over(&mut self, db: &mut PgConnection) -> sqlx::Result<bool> {
        self.is_ready(db).await
    }
}

impl Relay {
    /// Relays or stands by, until it is stopped or fails. Before the one begins, the other has ended.
    pub(super) async fn lead(
        &self,
        db: &mut PgConnection,
        settings: &ClientConfig,
        stop: &CancellationToken,
        is_outdated: &impl Fn() -> bool,
    ) -> anyhow::Result<()> {
        let mut connector = Connector::new(self.service);
        let ended = || stop.is_cancelled() || is_outdated();
        let is_carrying = is_carrying(db).await?;
        if self.carrier == Carrier::Service {
            if is_carrying {
                connector.take_back(db).await?;
                info!("the relay waits until the connector has sent everything that it captured");
            }
            while !connector.is_drained(db).await? {
                if ended() {
                    return Ok(());
                }
                self.pause(stop).await;
            }
            return self.relay(db, settings, stop, is_outdated, &mut ()).await.map(drop);
        }
        // If it is not drained, the relay takes over from the connector, and has not sent anything yet.
        if !is_carrying && connector.is_drained(db).await? {
            self.store_schema_ids(db).await?;
            if !self.relay(db, settings, stop, is_outdated, &mut connector).await? {
                return Ok(());
            }
        }
        gauge!("relay_active").set(1);
        let ended = self.stand_by(db, &mut connector, is_carrying, stop, &ended).await;
        gauge!("relay_active").set(0);
        // After a failure the values of the slot stay: if the loop fails repeatedly, no other ones would show that
        // events wait.
        if ended.is_ok() {
            self.report_nothing();
        }
        ended
    }

    /// Another instance reports the lag from now on, or none does.
    pub(super) fn report_nothing(&self) {
        gauge!("outbox_oldest_seconds").set(0);
        if self.carrier == Carrier::Cdc {
            report_nothing();
        }
    }

    /// Lets the connector carry the outbox and watches it, until it is stopped or fails. Without a slot the log keeps
    /// nothing for the connector, so the loop takes the outbox back, and relays until there is a slot again.
    async fn stand_by(
        &self,
        db: &mut PgConnection,
        connector: &mut Connector,
        mut is_carrying: bool,
        stop: &CancellationToken,
        ended: &impl Fn() -> bool,
    ) -> anyhow::Result<()> {
        let mut lag = OutboxLag::new();
        let mut ids_stored_at = Instant::now();
        let mut log_throttle = LogThrottle::default();
        while !ended() {
            connector.measure(db).await?;
            if connector.is_gone() {
                return connector.take_back(db).await;
            }
            lag.measure(db).await?;
            // While the connector carries the outbox, only rows whose schema has no id stay there.
            // A registry that was replaced has other ids.
            let is_waiting = lag.has_rows() || !is_carrying;
            if is_waiting || ids_stored_at.elapsed() > SCHEMA_IDS_INTERVAL {
                ids_stored_at = Instant::now();
                let stored = self.store_schema_ids(db).await;
                let can_hand_over = match is_carrying {
                    true => connector.has_known_rows(db).await?,
                    false => connector.keeps_up(),
                };
                if can_hand_over {
                    is_carrying = connector.hand_over(db).await?;
                    lag = OutboxLag::new();
                } else if is_waiting {
                    let reason = match stored {
                        Ok(()) => {
                            "the connector is not ready, or the schema ids are not known".into()
                        }
                        Err(error) => format!("{error:#}"),
                    };
                    if log_throttle.should_log("", &reason) {
                        warn!("events wait in the outbox: {reason}");
                    }
                }
            }
            self.pause(stop).await;
        }
        Ok(())
    }

    async fn store_schema_ids(&self, db: &mut PgConnection) -> anyhow::Result<()> {
        schema_ids::store(&self.registry, db, self.service, &self.topics).await
    }

    async fn pause(&self, stop: &CancellationToken) {
        self.heartbeat.beat();
        stop.run_until_cancelled(tokio::time::sleep(SLOT_POLL_INTERVAL)).await;
    }
}
