//! The inside of the chassis for the crate `holdfast-testing` and for the tests of this crate. It is public because
//! they are other crates, and hidden because nothing else may use it: it may change with every version. With a feature
//! of its own, every test build would compile the chassis a second time; no `main` of a service reaches this code, so
//! the linker omits it.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::{Extension, Router};
use chrono::Utc;
use rdkafka::Timestamp;
use rdkafka::message::{OwnedHeaders, OwnedMessage};
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};
use uuid::Uuid;

use crate::admin::republish::{self, RepublishSource};
use crate::commands::{self, Commands};
use crate::config::{Config, KeyLocation, Secret, TokenConfig, env};
use crate::consumer::handlers::Handlers;
use crate::consumer::router::EventRouter;
use crate::db::{self, migrate, pool};
use crate::dead_letter::ReasonKind;
use crate::event::avro::{Codec, dataschema, frame};
use crate::event::{Event, HandlerContext, HandlerResult, Outcome, Outgoing, Topic, Unprocessable};
use crate::flow::heartbeat::Heartbeats;
use crate::flow::wakeups::Wakeups;
pub use crate::http::callers::authorize::operators_only;
use crate::http::callers::caller::Caller;
pub use crate::http::callers::identify::Callers;
use crate::http::change_feed::{ChangeFeed, FeedEntry};
use crate::http::limits::Limits;
use crate::http::server;
use crate::kafka::writer_schemas::WriterSchemas;
use crate::outbox::query::{self, OutboxRow};
use crate::transaction::events::apply_events;
use crate::transaction::failure::Failure;
use crate::transaction::incoming_record::IncomingRecord;
use crate::unit_of_work::write_batch::WriteBatch;
use crate::unit_of_work::{Loads, UnitOfWork};

/// Creates a database for a test, with the roles of an owner and of a server, on the cluster of
/// TEST_DATABASE_URL.
pub async fn fresh_database() -> (Secret, Secret) {
    let cluster = std::env::var("TEST_DATABASE_URL")
        .expect("TEST_DATABASE_URL is the superuser's URL of a throw-away cluster");
    let cluster = PgConnectOptions::from_str(&cluster).expect("the URL can be read");
    let mut db = PgConnection::connect_with(&cluster).await.expect("the cluster runs");
    let name = format!("t{}", Uuid::now_v7().simple());
    for statement in [
        format!("create role \"{name} owner\" login password '{name}'"),
        format!("create role \"{name} server\" login password '{name}'"),
        format!("create database {name} owner \"{name} owner\""),
        // No test kills the server or stalls its disk. With this setting, a slow disk delays no commit beyond its
        // timeout.
        format!("alter database {name} set synchronous_commit = off"),
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut db).await.expect("a superuser");
    }
    let at = format!("{}:{}/{name}", cluster.get_host(), cluster.get_port());
    let url = |role| Secret::from(format!("postgres://{name}%20{role}:{name}@{at}"));
    (url("owner"), url("server"))
}

/// A configuration with these databases, and without Kafka and registry.
pub fn config(owner: Secret, server: Secret) -> Config {
    env::read_from(|name| match name {
        "DATABASE_URL" => Some(server.expose().to_owned()),
        "MIGRATION_DATABASE_URL" => Some(owner.expose().to_owned()),
        "KAFKA_BOOTSTRAP_SERVERS" => Some("nowhere".to_owned()),
        "SCHEMA_REGISTRY_URL" => Some("http://nowhere".to_owned()),
        _ => None,
    })
    .expect("all that is required is there")
}

const SCHEMA_ID: u32 = 1;

/// The headers of an event that another service published now, as its relay makes them.
pub fn record_headers(topic: &Topic, event_id: Uuid) -> OwnedHeaders {
    // A trace of its own.
    let trace = Uuid::now_v7().simple().to_string();
    let row = OutboxRow {
        event_id,
        topic: topic.name.to_owned(),
        traceparent: Some(format!("00-{trace}-{}-01", &trace[16..])),
        occurred_at: Utc::now(),
        ..OutboxRow::default()
    };
    let dataschema = dataschema(topic.schema).expect("the schema is valid");
    query::record_headers(&format!("/{}", topic.publisher), &row, &dataschema)
}

fn kafka_record<E: Event>(id: Uuid, event: &E) -> OwnedMessage {
    let Outgoing { topic, key, body, .. } = Outgoing::from_event(event);
    let headers = record_headers(topic, id);
    let (payload, key) = (Some(frame(SCHEMA_ID, &body)), Some(key.into_bytes()));
    OwnedMessage::new(payload, key, topic.name.into(), Timestamp::NotAvailable, 0, 0, Some(headers))
}

/// A service's database and command executors, without its loops to Kafka. The executors end with it.
pub struct LocalService<R: UnitOfWork> {
    service: &'static str,
    /// The pool of the serving role.
    pub db: PgPool,
    /// The pool of the role that owns the tables.
    pub owner: PgPool,
    /// Takes commands.
    pub commands: Commands<R>,
    wakeups: Arc<Wakeups>,
    _stop: DropGuard,
}

impl<R: UnitOfWork> LocalService<R> {
    /// Creates a database, migrates it as its owner, and starts the executors as its server.
    pub async fn start(service: &'static str, migrator: Migrator) -> LocalService<R> {
        let (owner, server) = fresh_database().await;
        let mut config = config(owner.clone(), server);
        migrate::migrate(service, &config, migrator).await.expect("the migrations run");
        let db = pool::connect(service, &config).expect("the URL can be read");
        config.database_url = owner;
        let owner = pool::connect(service, &config).expect("the URL can be read");
        let heartbeat = Heartbeats::default().register("command executor", Duration::from_secs(60));
        let wakeups = Arc::<Wakeups>::default();
        let (commands, executor) =
            commands::command_channel(service, db.clone(), wakeups.clone(), heartbeat);
        let stop = CancellationToken::new();
        tokio::spawn(executor.run(stop.clone()));
        LocalService { service, db, owner, commands, wakeups, _stop: stop.drop_guard() }
    }

    /// The change feed of this replica.
    pub fn change_feed<E: FeedEntry>(&self, stop: &CancellationToken) -> ChangeFeed<E> {
        ChangeFeed::new(self.db.clone(), self.wakeups.clone(), stop.clone())
    }

    /// The change feed of another replica, on a pool of its own: commits of this replica do not wake it.
    pub fn remote_change_feed<E: FeedEntry>(&self, stop: &CancellationToken) -> ChangeFeed<E> {
        let db = self.db.options().clone().connect_lazy_with((*self.db.connect_options()).clone());
        ChangeFeed::new(db, Arc::default(), stop.clone())
    }

    /// Applies events of one type in one transaction, once, on the path of records from Kafka.
    pub async fn apply<E: Event, O: Outcome + 'static>(
        &self,
        events: &[(Uuid, &E)],
        handler: fn(&E, &mut R, HandlerContext) -> HandlerResult<O>,
    ) -> Result<(), Unprocessable>
    where
        R: Loads<E>,
    {
        let routes = EventRouter::new(self.service, Handlers::new().on(handler).routes);
        let written = Codec::new(E::topic().schema).expect("the schema is valid");
        let schemas = WriterSchemas::single(SCHEMA_ID, written);
        let records = events.iter().map(|(id, event)| kafka_record(*id, *event));
        let items: Vec<_> = records.map(|record| routes.parse(record, &schemas)).collect();
        let unreadable = items.iter().find_map(IncomingRecord::as_dead_letter);
        assert!(unreadable.is_none(), "an event can't be read");
        let mut tx = db::begin(&self.db).await.expect("a transaction");
        let now = db::now(&mut tx).await.expect("the time");
        match apply_events(&mut tx, &items, now, true, 1).await {
            Ok(effect) => {
                tx.commit().await.expect("the commit");
                effect.after_commit(&self.wakeups);
                Ok(())
            }
            Err(Failure::Undecidable(_, reason)) if reason.kind == ReasonKind::Unprocessable => {
                Err(Unprocessable(reason.detail))
            }
            Err(failure) => panic!("the events were not applied: {failure}"),
        }
    }

    /// The operators' route that publishes the events of these rows again.
    pub fn republish(&self, sources: Vec<RepublishSource>) -> Router {
        let router = Router::from(republish::router(self.db.clone(), Arc::default(), sources));
        router.layer(Extension(unknown_callers()))
    }
}

/// Compares a committed description with what the code generates. Rewrites the file if the variable `REWRITE_OPENAPI` is
/// set, as `make openapi` does.
///
/// # Panics
/// If they differ.
pub fn compare_document(path: &str, generated: &str) {
    if std::env::var_os("REWRITE_OPENAPI").is_some() {
        std::fs::write(path, generated).expect("the file can be written");
        return;
    }
    let committed = std::fs::read_to_string(path).unwrap_or_default();
    let mut lines = committed.lines().zip(generated.lines()).enumerate();
    let differing = lines.find(|(_, (committed, generated))| committed != generated);
    let differing = differing.map_or(String::new(), |(nth, (committed, generated))| {
        format!("; line {}: {committed:?} is now {generated:?}", nth + 1)
    });
    assert!(
        committed == generated,
        "{path} differs from the code{differing}. `make openapi` rewrites it."
    );
}

/// What a port tells its routes of a service that knows no callers: an extension of the request.
pub fn unknown_callers() -> Callers {
    Callers::unknown()
}

/// The callers whom tokens name, by the keys of their issuer in a file.
///
/// # Errors
/// If the file holds no key.
pub fn callers_by_tokens(issuer: &str, audience: &str, keys: String) -> anyhow::Result<Callers> {
    Callers::new(&TokenConfig {
        token_issuer: Some(issuer.to_owned()),
        token_audience: audience.to_owned(),
        token_keys: Some(KeyLocation::File(keys)),
    })
}

/// A port at which every request has this caller.
pub fn router_for(router: Router, subject: &str, scopes: &[&str]) -> Router {
    let scopes = scopes.iter().map(|scope| (*scope).to_owned()).collect();
    let caller = Caller::named(subject.to_owned(), scopes);
    router.layer(Extension(Callers::fixed(Some(caller))))
}

/// A port of a service that knows its callers, at which no request has a token.
pub fn router_without_token(router: Router) -> Router {
    router.layer(Extension(Callers::fixed(None)))
}

/// A write batch on a test's own transaction.
pub fn write_batch(tx: &mut PgConnection) -> WriteBatch<'_> {
    WriteBatch::new(tx)
}

/// Serves a router as the API of a service that knows no callers, over plain HTTP and with all limits, for as long as
/// the process runs.
///
/// # Errors
/// If the listener fails.
pub async fn serve(listener: TcpListener, router: Router) -> anyhow::Result<()> {
    let router = router.layer(Extension(unknown_callers()));
    let never = CancellationToken::new();
    server::serve(listener, None, router, Limits::default(), never, Duration::ZERO).await
}
