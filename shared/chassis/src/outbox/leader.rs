//! Who carries the outbox to Kafka: what the loop does that holds the relay's lock.

use anyhow::Context;
use metrics::gauge;
use sqlx::PgConnection;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::config::{Carrier, KafkaConfig};
use crate::outbox::connector::{self, Connector, SLOT_POLL_INTERVAL};
use crate::outbox::lag::OutboxLag;
use crate::outbox::relay::Relay;
use crate::outbox::schema_ids;
use crate::telemetry::log_throttle::LogThrottle;

impl Relay {
    /// Relays or stands by, until it is stopped or fails. Before the one begins, the other has ended.
    pub(super) async fn lead(
        &self,
        db: &mut PgConnection,
        settings: &KafkaConfig,
        stop: &CancellationToken,
        is_outdated: &impl Fn() -> bool,
    ) -> anyhow::Result<()> {
        let mut connector = Connector::new(self.service);
        let ended = || stop.is_cancelled() || is_outdated();
        let is_carrying = connector.is_carrying(db).await?;
        if self.carrier == Carrier::Service {
            if is_carrying {
                connector.take_back(db).await.context("the outbox could not be taken back")?;
                info!("the relay waits until the connector has sent all that it captured");
            }
            while !connector.is_drained(db).await? {
                if ended() {
                    return Ok(());
                }
                self.pause(stop).await;
            }
            return self.relay(db, settings, stop, is_outdated, None).await.map(drop);
        }
        if !is_carrying {
            // If it is not drained, the relay was to relieve it, and has not sent anything yet.
            if connector.is_drained(db).await? {
                self.store_schema_ids(db).await?;
                let successor = Some(&mut connector);
                if !self.relay(db, settings, stop, is_outdated, successor).await? {
                    return Ok(());
                }
            }
            if !self.hand_over(db, &connector, &ended).await? {
                return Ok(());
            }
        }
        gauge!("relay_active").set(1);
        let ended = self.stand_by(db, &mut connector, stop, &ended).await;
        gauge!("relay_active").set(0);
        // After a failure the values of the slot stay: if the loop fails repeatedly, no other ones would show that
        // events wait.
        if ended.is_ok() {
            connector::report_nothing();
            gauge!("outbox_oldest_seconds").set(0);
        }
        ended
    }

    /// Watches the connector, until it is stopped or fails. Without a slot the log keeps nothing for the connector, so
    /// the loop takes the outbox back, and relays until there is a slot again.
    async fn stand_by(
        &self,
        db: &mut PgConnection,
        connector: &mut Connector,
        stop: &CancellationToken,
        ended: &impl Fn() -> bool,
    ) -> anyhow::Result<()> {
        let mut lag = OutboxLag::new();
        let mut log_throttle = LogThrottle::default();
        while !ended() {
            lag.measure(db).await?;
            // Only rows whose schema has no id stay in the outbox.
            if lag.has_rows() {
                if let Err(error) = self.store_schema_ids(db).await {
                    warn!("events wait in the outbox: {error:#}");
                } else if connector.can_hand_over(db).await? {
                    self.hand_over(db, connector, ended).await?;
                } else if log_throttle.should_log("", "") {
                    warn!("events wait in the outbox: the registry does not have their schema");
                }
            }
            connector.measure(db).await?;
            if connector.is_gone() {
                connector.take_back(db).await.context("the outbox could not be taken back")?;
                return Ok(());
            }
            self.pause(stop).await;
        }
        Ok(())
    }

    /// Hands the outbox over, piece by piece. Returns false if it was stopped before the end.
    async fn hand_over(
        &self,
        db: &mut PgConnection,
        connector: &Connector,
        ended: &impl Fn() -> bool,
    ) -> anyhow::Result<bool> {
        while !connector.hand_over(db).await.context("the outbox could not be handed over")? {
            self.beat();
            if ended() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn store_schema_ids(&self, db: &mut PgConnection) -> anyhow::Result<()> {
        schema_ids::store(&self.registry, db, self.service, &self.topics).await
    }

    async fn pause(&self, stop: &CancellationToken) {
        self.beat();
        stop.run_until_cancelled(tokio::time::sleep(SLOT_POLL_INTERVAL)).await;
    }
}
