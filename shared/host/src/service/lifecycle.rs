//! The lifecycle of a service: it listens, waits for its database, serves, and stops.
//!
//! The first of its loops to end ends them all. A stop takes bounded time and has an order: the API
//! first, since its requests need the loops; then the loops, each at the end of its batch; the probes
//! last.

use std::pin::pin;
use std::time::Duration;

use messaging::crash_point;
use messaging::db::{self, clock, sequences};
use messaging::event::Topic;
use messaging::outbox;
use messaging::outbox::cdc::{connector, schema_ids};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use crate::db::migrate;
use crate::http::books;
use crate::http::health::Phase;
use crate::http::tls::TlsAcceptor;
use crate::service::ports::{ADMIN_TASK, API_TASK, INTERNAL_DRAIN_TIMEOUT, PROBES_TASK};
use crate::service::tasks::{Tasks, shutdown_signal};
use crate::service::{Routers, Service, ServiceLoop, api_port};
use messaging::outbox::Carrier;

const CLOCK_TASK: &str = "clock";
const RELOAD_TASK: &str = "reload of secrets";

const STORE_SCHEMAS_TIMEOUT: Duration = Duration::from_secs(8);
const STORE_SCHEMAS_RETRY_INTERVAL: Duration = Duration::from_secs(1);

impl Service {
    /// Serves the three ports and runs the loops, until a signal or until the first of them ends.
    ///
    /// - `api` is for clients. Each route admits the callers whose scopes its description lists.
    /// - `sums` selects the [books](crate::http::books::router) for operators. They reveal revenue, so they are not on
    ///   the probe port.
    /// - `admin` is for operators. A route has a description by `#[utoipa::path]`, like those of an API; a route
    ///   without one answers 500.
    ///
    /// # Errors
    /// If a loop failed, or one did not end in time; and before the start, if this service publishes events that
    /// it can't republish, or consumes events that it may not.
    pub async fn run(
        self,
        api: OpenApiRouter,
        sums: &'static str,
        admin: OpenApiRouter,
        loops: impl IntoIterator<Item = ServiceLoop>,
    ) -> anyhow::Result<()> {
        let books = books::router(self.db.clone(), sums);
        let routers = Routers { api: api_port(self.name, api), books, admin };
        self.ensure_republishable()?;
        self.ensure_may_consume()?;
        self.run_until(shutdown_signal()?, routers, loops).await
    }

    async fn run_until(
        self,
        shutdown_signal: impl Future<Output = ()>,
        routers: Routers,
        loops: impl IntoIterator<Item = ServiceLoop>,
    ) -> anyhow::Result<()> {
        let mut shutdown_signal = pin!(shutdown_signal);
        let (phase, phase_receiver) = watch::channel(Phase::Starting);
        let mut tasks = Tasks::default();
        let stop_internal_ports = CancellationToken::new();
        let tls = TlsAcceptor::from_config(&self.config.http_tls)?;
        self.listen(routers, tls.clone(), phase_receiver, &stop_internal_ports, &mut tasks)?;
        // From the start: the wait for the database may outlast a password.
        tasks.spawn(RELOAD_TASK, self.reloader(tls).run(self.stop.clone()));

        let ended_early = tokio::select! {
            () = shutdown_signal.as_mut() => Some(Ok(())),
            failure = tasks.join_first() => Some(Err(failure)),
            () = self.wait_until_prepared() => None,
        };
        let mut names = vec![RELOAD_TASK];
        let ended = match ended_early {
            Some(ended) => ended,
            None => {
                for ServiceLoop { name, run } in loops {
                    names.push(name);
                    tasks.spawn(name, run(self.stop.clone()));
                }
                names.push(CLOCK_TASK);
                tasks.spawn(CLOCK_TASK, clock::run(self.db.clone(), self.stop.clone()));
                self.heartbeats.beat_all();
                phase.send_replace(Phase::Serving);
                tracing::info!("serving on {}", self.config.http_addr);
                tokio::select! {
                    () = shutdown_signal => Ok(()),
                    failure = tasks.join_first() => Err(failure),
                }
            }
        };

        phase.send_replace(Phase::Stopping);
        match &ended {
            Ok(()) => tracing::info!("stopping: a stop was requested"),
            Err(failure) => tracing::warn!("stopping: {failure}"),
        }
        crash_point!("service.stopping");
        let bound = self.config.shutdown_timeout;
        let deadline = Instant::now() + bound;
        self.draining.cancel();
        let drained = tasks.join(&[API_TASK], deadline).await;
        crash_point!("service.drained");
        self.stop.cancel();
        let stopped = tasks.join(&names, deadline).await;
        crash_point!("service.stopped");
        let late: Vec<_> =
            tasks.running().into_iter().filter(|task| names.contains(task)).collect();
        stop_internal_ports.cancel();
        let closed =
            tasks.join(&[PROBES_TASK, ADMIN_TASK], Instant::now() + INTERNAL_DRAIN_TIMEOUT).await;
        // Transactions that are cut off here are rolled back; the timeout is for an unavailable database.
        let _ = timeout(INTERNAL_DRAIN_TIMEOUT, self.db.close()).await;

        let mut ended = ended.and(drained).and(stopped).and(closed);
        if !late.is_empty() {
            let late = format!("did not stop within {bound:?}: {}", late.join(", "));
            ended = Err(match ended {
                Ok(()) => anyhow::anyhow!(late),
                Err(failure) => failure.context(late),
            });
        }
        ended.inspect(|()| tracing::info!("stopped"))
    }

    /// Waits, without a limit, until the database has the migrations of this version and the schema of every event
    /// that this version may write. An older relay can then publish what this process commits, even if this
    /// process dies right afterwards. If a connector carries the outbox, also until it has the ids of the schemas.
    async fn wait_until_prepared(&self) {
        migrate::wait_for_migrations(&self.db, &self.migrator).await;
        // Before anything is numbered: the database may have failed over while no process ran.
        sequences::advance_all(&self.db).await;
        let Some(published) = self.published_topics.get() else { return };
        let stored =
            || db::with_timeout(STORE_SCHEMAS_TIMEOUT, outbox::store_schemas(&self.db, published));
        while let Err(error) = stored().await {
            tracing::warn!("the schemas of the published topics could not be stored: {error}");
            sleep(STORE_SCHEMAS_RETRY_INTERVAL).await;
        }
        while let Err(error) = self.store_schema_ids(published).await {
            tracing::warn!("waiting for the schema ids: {error:#}");
            sleep(STORE_SCHEMAS_RETRY_INTERVAL).await;
        }
    }

    /// Before the first request, so that none waits for the registry.
    async fn store_schema_ids(&self, published: &[&'static Topic]) -> anyhow::Result<()> {
        let mut db = self.db.acquire().await?;
        if self.config.relay == Carrier::Cdc || connector::is_carrying(&mut db).await? {
            schema_ids::store(&self.registry, &mut db, self.name, published).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "lifecycle_tests.rs"]
mod tests;
