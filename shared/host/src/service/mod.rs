//! A service is one database and the loops around it. This module makes the parts: commands, relay, consumer, and
//! the routers of the three ports; [`process`] is the `main`, and `lifecycle` runs the parts from the first
//! listener to the exit. Promise: the first loop to end ends the process, and a stop takes a bounded time and
//! loses no command that was answered. A loop that outlives the others breaks it, and so does a loop that stops
//! before the API has drained.

pub mod calls;
mod certificates;
pub mod frontend;
pub(crate) mod lifecycle;
pub(crate) mod open_files;
mod ports;
pub mod process;
mod reload;
pub(crate) mod tasks;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use futures::future::BoxFuture;
use messaging::consumer;
use messaging::consumer::handlers::Handlers;
use messaging::consumer::lag::ConsumerLag;
use messaging::consumer::resources::ConsumerResources;
use messaging::event::{self, Event, Topic};
use messaging::flow::heartbeat::{Heartbeat, Heartbeats};
use messaging::flow::wakeups::Wakeups;
use messaging::kafka::compacted_topic::CompactedTopic;
use messaging::kafka::schema_registry::SchemaRegistryClient;
use messaging::outbox::relay::Relay;
use messaging::unit_of_work::UnitOfWork;
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use sqlx::PgPool;
use sqlx::migrate::Migrator;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use utoipa_axum::router::OpenApiRouter;

use crate::admin;
use crate::admin::replay::DeadLetters;
use crate::admin::republish::{self, RepublishSource};
use crate::config::Config;
use crate::db::pool::RenewablePool;
use crate::http::callers::authorize::operators_only;
use crate::http::callers::identify::Callers;
use crate::http::change_feed::{ChangeFeed, FeedEntry};
use crate::http::commands::{CommandExecutor, Commands, command_channel};
use crate::http::tls::TlsAcceptor;
use crate::http::webhooks::WebhookSource;
use crate::http::{books, openapi, webhooks};
use crate::service::reload::{ReadConfig, Reloader, Users};

/// The longest interval between two heartbeats of a loop: the longest wait within its own bounds, with room to
/// spare. A loop waits for the end of an outage step by step, and each step beats.
const COMMANDS_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(60);
const RELAY_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(60);
const CONSUMER_HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(120);

/// Everything from which the parts of a service are made.
pub struct Service {
    /// Its name, which is also the name of its folder, crate, image, database, consumer group and traces.
    pub name: &'static str,
    pub(crate) config: Config,
    /// Reads the environment again, with the files that it names.
    pub(crate) read_config: ReadConfig,
    /// Its own database.
    pub db: PgPool,
    pool: RenewablePool,
    /// How it connects to Kafka at present.
    kafka: watch::Sender<ClientConfig>,
    /// The heartbeats of its loops.
    pub(crate) heartbeats: Heartbeats,
    /// Cancelled when the loops are to end, after the API has drained.
    pub(crate) stop: CancellationToken,
    registry: Arc<SchemaRegistryClient>,
    /// Cancelled before the loops are: from then on the API accepts no new connection. It finishes the running
    /// requests, and answers queued connections and one last request on each keep-alive connection.
    pub(crate) draining: CancellationToken,
    wakeups: Arc<Wakeups>,
    pub(crate) migrator: Migrator,
    pub(crate) published_topics: OnceLock<Vec<&'static Topic>>,
    /// Those that its handlers name.
    pub(crate) consumed_topics: OnceLock<Vec<&'static Topic>>,
    /// Those that it reads from their beginning.
    pub(crate) snapshot_topics: Mutex<Vec<&'static Topic>>,
    /// The names of the topics whose events can be republished.
    republished_topics: OnceLock<Vec<&'static str>>,
    pub(crate) metrics: PrometheusHandle,
    /// Who calls its API and its admin port.
    pub(crate) callers: Callers,
}

/// The router of the API, and the two of the admin port. Each port has other clients.
pub(crate) struct Routers {
    pub api: Router,
    pub books: Router,
    pub admin: OpenApiRouter,
}

/// A loop around the database. When its token is cancelled it finishes its batch and ends.
pub struct ServiceLoop {
    pub(crate) name: &'static str,
    pub(crate) run:
        Box<dyn FnOnce(CancellationToken) -> BoxFuture<'static, anyhow::Result<()>> + Send>,
}

impl ServiceLoop {
    /// A loop, with its name in logs. A [`Service::heartbeat`] shows that it makes progress.
    pub fn new<F, R>(name: &'static str, run: F) -> Self
    where
        F: FnOnce(CancellationToken) -> R + Send + 'static,
        R: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        Self { name, run: Box::new(|stop| Box::pin(run(stop))) }
    }
}

impl<R: UnitOfWork> From<CommandExecutor<R>> for ServiceLoop {
    fn from(executor: CommandExecutor<R>) -> ServiceLoop {
        ServiceLoop::new("command executor", |stop| executor.run(stop))
    }
}

impl From<Relay> for ServiceLoop {
    fn from(relay: Relay) -> ServiceLoop {
        ServiceLoop::new("relay", |stop| relay.run(stop))
    }
}

/// The loop that applies the events of other services.
pub struct Consumer<R: UnitOfWork>(pub(crate) consumer::Consumer<R>);

impl<R: UnitOfWork> From<Consumer<R>> for ServiceLoop {
    fn from(Consumer(consumer): Consumer<R>) -> ServiceLoop {
        ServiceLoop::new("consumer", |stop| consumer.run(stop))
    }
}

impl<R: UnitOfWork> Consumer<R> {
    /// How far it is behind the ends of its topics.
    pub fn lag(&self) -> ConsumerLag {
        self.0.lag()
    }

    /// The routes of the admin port for this consumer and its dead letters.
    pub fn admin(&self) -> OpenApiRouter {
        admin::router(DeadLetters::of(&self.0))
    }
}

/// The API of a service: its routes, their description, and the check of callers.
fn api_port(name: &str, api: OpenApiRouter) -> Router {
    openapi::serve(name, api)
}

/// The admin port of a service: its routes, their description, and the check of operators.
pub(crate) fn admin_port(name: &str, mut admin: OpenApiRouter, books: Router) -> Router {
    admin.get_openapi_mut().merge(books::routes().into_openapi());
    operators_only(openapi::serve_admin(name, admin.merge(books.into())))
}

impl Service {
    pub(crate) fn new(
        name: &'static str,
        config: Config,
        migrator: Migrator,
        metrics: PrometheusHandle,
    ) -> anyhow::Result<Self> {
        let pool = RenewablePool::new(name, &config)?;
        let registry = config.schema_registry.client()?;
        let same = config.clone();
        Ok(Self {
            name,
            read_config: Arc::new(move || Ok(same.clone())),
            db: pool.pool.clone(),
            kafka: watch::Sender::new(config.kafka.connection()),
            heartbeats: Heartbeats::default(),
            stop: CancellationToken::new(),
            registry: Arc::new(registry.keeping_ids_in(pool.pool.clone())),
            draining: CancellationToken::new(),
            wakeups: Arc::default(),
            migrator,
            published_topics: OnceLock::new(),
            consumed_topics: OnceLock::new(),
            snapshot_topics: Mutex::default(),
            republished_topics: OnceLock::new(),
            metrics,
            callers: Callers::new(&config.tokens)?,
            config,
            pool,
        })
    }

    /// The queue of clients' commands, and the executors behind it: a part of the API loop.
    pub fn commands<R: UnitOfWork>(&self) -> (Commands<R>, CommandExecutor<R>) {
        let heartbeat = self.heartbeats.register("command executor", COMMANDS_HEARTBEAT_TIMEOUT);
        command_channel(self.name, self.db.clone(), self.wakeups.clone(), heartbeat)
    }

    /// The loop that sends the outbox to Kafka. This service publishes the topics of the program that name it as their
    /// publisher. Their schemas are stored beside the outbox before any loop begins.
    pub fn relay(&self) -> Relay {
        let published = event::topics().iter().filter(|topic| topic.publisher == self.name);
        let _ = self.published_topics.set(published.copied().collect());
        let heartbeat = self.heartbeats.register("relay", RELAY_HEARTBEAT_TIMEOUT);
        let (registry, wakeups) = (self.registry.clone(), self.wakeups.clone());
        let kafka = self.kafka.subscribe();
        let relay = Relay::new(self.name, kafka, self.db.clone(), registry, wakeups, heartbeat);
        relay.carried_by(self.config.relay, self.published_topics.get().map_or(&[], Vec::as_slice))
    }

    /// The loop that applies the events of other services.
    pub fn consumer<R: UnitOfWork>(&self, handlers: Handlers<R>) -> Consumer<R> {
        let _ = self.consumed_topics.set(handlers.topics());
        let heartbeat = self.heartbeats.register("consumer", CONSUMER_HEARTBEAT_TIMEOUT);
        let (db, registry) = (self.db.clone(), self.registry.clone());
        let router = Arc::new(handlers.into_router(self.name));
        let wakeups = self.wakeups.clone();
        let scheduler_heartbeat = router
            .has_timers()
            .then(|| self.heartbeats.register("scheduler", CONSUMER_HEARTBEAT_TIMEOUT));
        let resources =
            ConsumerResources { db, registry, wakeups, heartbeat, scheduler_heartbeat, router };
        Consumer(consumer::Consumer::new(self.name, self.kafka.subscribe(), resources))
    }

    /// The heartbeat of a loop of the service's own, which has to beat at least once in every `bound`. Otherwise
    /// `/livez` fails and an orchestrator restarts the process.
    pub fn heartbeat(&self, name: &'static str, bound: Duration) -> Heartbeat {
        self.heartbeats.register(name, bound)
    }

    /// The task that takes over secrets and certificates when they change.
    fn reloader(&self, tls: Option<TlsAcceptor>) -> Reloader {
        let (pool, registry) = (self.pool.clone(), self.registry.clone());
        let users = Users { pool, kafka: self.kafka.clone(), registry, tls };
        Reloader::new(self.read_config.clone(), &self.config, users)
    }

    /// The feed by which clients wait for a change, on any replica.
    pub fn change_feed<E: FeedEntry>(&self) -> ChangeFeed<E> {
        ChangeFeed::new(self.db.clone(), self.wakeups.clone(), self.draining.clone())
    }

    /// A topic of state for which this service has a handler, to be read from its beginning.
    pub fn compacted_topic<E: Event>(&self) -> CompactedTopic<E> {
        self.snapshot_topics.lock().push(E::topic());
        CompactedTopic::new(self.name, self.kafka.subscribe(), self.registry.clone())
    }

    /// The route `POST /republish` for operators, which publishes the events of these rows again.
    pub fn republish(&self, sources: impl IntoIterator<Item = RepublishSource>) -> OpenApiRouter {
        let sources = Vec::from_iter(sources);
        let topics = sources.iter().flat_map(RepublishSource::topic_names).copied();
        let _ = self.republished_topics.set(topics.collect());
        republish::router(self.db.clone(), self.wakeups.clone(), sources)
    }

    /// The route `POST /webhooks/{source}` of the API, which takes the deliveries of these senders for the handlers of
    /// [`Handlers::on_delivery`].
    ///
    /// # Errors
    /// If the secret of a sender is not set, or cannot be read.
    pub fn webhooks(
        &self,
        sources: impl IntoIterator<Item = WebhookSource>,
    ) -> anyhow::Result<OpenApiRouter> {
        webhooks::router(self.db.clone(), sources)
    }

    /// Every event that this service publishes can be republished: otherwise an operator would find out only after
    /// a loss.
    ///
    /// # Errors
    /// If the events of a topic can't be.
    pub(crate) fn ensure_republishable(&self) -> anyhow::Result<()> {
        let covered = self.republished_topics.get().map_or(&[][..], Vec::as_slice);
        for Topic { name, .. } in self.published_topics.get().into_iter().flatten() {
            anyhow::ensure!(
                covered.contains(name),
                "{name} is published and can't be republished: name its event in `Republish::Events` of the row that \
                 records its events, and pass that row to `service.republish(…)`"
            );
        }
        Ok(())
    }

    /// The handlers of this service name every topic that it reads, and it may read each of them: the rights in Kafka
    /// follow from the handlers, and personal data is read by those alone whom its owner names.
    ///
    /// # Errors
    /// If that is not so.
    pub(crate) fn ensure_may_consume(&self) -> anyhow::Result<()> {
        let service = self.name;
        let consumed = self.consumed_topics.get().map_or(&[][..], Vec::as_slice);
        for topic in consumed {
            let Topic { name, publisher, .. } = topic;
            anyhow::ensure!(
                topic.admits(service),
                "{name} has personal data, and {service} is not among its readers: either {publisher} adds \
                 \"{service}\" to `personal(…)` where the event is declared, or {service} removes its handler"
            );
        }
        for Topic { name, .. } in &*self.snapshot_topics.lock() {
            anyhow::ensure!(
                consumed.iter().any(|topic| topic.name == *name),
                "{service} reads {name} from its beginning, and its handlers do not name it: add one to `handlers()`"
            );
        }
        Ok(())
    }
}
