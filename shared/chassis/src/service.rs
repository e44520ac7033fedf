//! A service is one database and the loops around it: what they are made from. How it lives and ends
//! stands in `life.rs`.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use futures::future::BoxFuture;
use metrics_exporter_prometheus::PrometheusHandle;
use sqlx::PgPool;
use sqlx::migrate::Migrator;
use tokio_util::sync::CancellationToken;

use crate::announce::{self, Source};
use crate::commands::{Commands, Writers};
use crate::config::Config;
use crate::consumer::Consumer;
use crate::event::{Event, Topic};
use crate::probes::{Heartbeat, Heartbeats};
use crate::registry::Registry;
use crate::relay::Relay;
use crate::rows::Rows;
use crate::state::StateTopic;
use crate::wake::Wake;
use crate::watch::{Entry, Watch};
use crate::{commands, schema};

/// How long a loop may take to show that it moves: the longest it can wait within its own bounds,
/// with room to spare. An outage of anything it needs is waited for step by step, and each step beats.
const WRITERS_BEAT_WITHIN: Duration = Duration::from_secs(60);
const RELAY_BEATS_WITHIN: Duration = Duration::from_secs(60);
const CONSUMER_BEATS_WITHIN: Duration = Duration::from_secs(120);

/// What the parts of a service are made from.
pub struct Service {
    /// Its one name: of its folder, crate, image, database, consumer group and traces.
    pub name: &'static str,
    /// Its environment.
    pub(crate) config: Config,
    /// Its own database.
    pub db: PgPool,
    /// Where its loops register that they move.
    pub(crate) heartbeats: Heartbeats,
    /// Cancelled when the loops are to end, after the API has drained.
    pub(crate) stop: CancellationToken,
    registry: Arc<Registry>,
    /// Cancelled before the loops are: from then on the API accepts nobody new. It finishes what is
    /// under way, and answers connections that wait already and one last request on each kept one.
    pub(crate) draining: CancellationToken,
    wake: Arc<Wake>,
    pub(crate) migrator: Migrator,
    /// The topics that its relay publishes.
    pub(crate) published: OnceLock<Vec<&'static Topic>>,
    pub(crate) metrics: PrometheusHandle,
}

/// What the three ports answer, each on a port of its own because each is for other people.
pub struct Routers {
    /// For clients.
    pub api: Router,
    /// Beside the probes, read-only: the sums that must balance.
    pub books: Router,
    /// For operators.
    pub operator: Router,
}

/// A loop around the database. When the token it is given is cancelled it ends its batch, and then
/// itself.
pub struct Loop {
    pub(crate) name: &'static str,
    pub(crate) run:
        Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, anyhow::Result<()>> + Send>,
}

impl Loop {
    /// A loop, under the name that logs give it. To show that it moves, it beats a
    /// [`Service::heartbeat`].
    pub fn new<F, R>(name: &'static str, run: F) -> Self
    where
        F: FnOnce(CancellationToken) -> R + Send + 'static,
        R: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        Self { name, run: Box::new(|stop| Box::pin(run(stop))) }
    }
}

impl<R: Rows> From<Writers<R>> for Loop {
    fn from(writers: Writers<R>) -> Loop {
        Loop::new("writers", |stop| writers.run(stop))
    }
}

impl From<Relay> for Loop {
    fn from(relay: Relay) -> Loop {
        Loop::new("relay", |stop| relay.run(stop))
    }
}

impl<R: Rows> From<Consumer<R>> for Loop {
    fn from(consumer: Consumer<R>) -> Loop {
        Loop::new("consumer", |stop| consumer.run(stop))
    }
}

impl Service {
    pub(crate) fn new(
        name: &'static str,
        config: Config,
        migrator: Migrator,
        metrics: PrometheusHandle,
    ) -> anyhow::Result<Self> {
        let db = schema::connect(name, &config)?;
        let (heartbeats, stop) = (Heartbeats::new(), CancellationToken::new());
        let registry = Arc::new(Registry::new(&config.schema_registry)?);
        Ok(Self {
            name,
            config,
            db,
            heartbeats,
            stop,
            registry,
            draining: CancellationToken::new(),
            wake: Arc::default(),
            migrator,
            published: OnceLock::new(),
            metrics,
        })
    }

    /// What takes clients' commands, and the writers behind it: a part of the API loop.
    pub fn commands<R: Rows>(&self) -> (Commands<R>, Writers<R>) {
        let heartbeat = self.heartbeats.register("writers", WRITERS_BEAT_WITHIN);
        commands::commands(self.name, self.db.clone(), self.wake.clone(), heartbeat)
    }

    /// The loop that carries the outbox to Kafka. Of all topics, the schemas of those that this
    /// service publishes are stored beside the outbox before any loop begins.
    pub fn relay(&self, topics: &[&'static Topic]) -> Relay {
        let published = topics.iter().filter(|topic| topic.publisher == self.name);
        let _ = self.published.set(published.copied().collect());
        let heartbeat = self.heartbeats.register("relay", RELAY_BEATS_WITHIN);
        let (registry, wake) = (self.registry.clone(), self.wake.clone());
        Relay::new(self.name, &self.config.kafka, self.db.clone(), registry, wake, heartbeat)
    }

    /// The loop that brings other services' events in; give it a handler for each topic.
    pub fn consumer<R: Rows>(&self) -> Consumer<R> {
        let heartbeat = self.heartbeats.register("consumer", CONSUMER_BEATS_WITHIN);
        let (registry, wake) = (self.registry.clone(), self.wake.clone());
        Consumer::new(self.name, &self.config.kafka, self.db.clone(), registry, wake, heartbeat)
    }

    /// For a loop of the service's own, which has to beat at least once in every `bound`; if it does not,
    /// `/livez` fails and an orchestrator starts the process again.
    pub fn heartbeat(&self, name: &'static str, bound: Duration) -> Heartbeat {
        self.heartbeats.register(name, bound)
    }

    /// What lets clients wait for a change, on any replica.
    pub fn watch<E: Entry>(&self) -> Watch<E> {
        Watch::new(self.db.clone(), self.wake.clone(), self.draining.clone())
    }

    /// A topic of state that this service hears, to be read from its beginning.
    pub fn state<E: Event>(&self) -> StateTopic<E> {
        StateTopic::new(self.name, &self.config.kafka, self.registry.clone())
    }

    /// `POST /announce` for operators, which publishes again what these rows published.
    pub fn announce(&self, sources: impl IntoIterator<Item = Source>) -> Router {
        announce::router(self.db.clone(), self.wake.clone(), sources)
    }
}
