//! What the tests of a service stand on: a database of its own, migrated as in production, with the
//! service's writers at work on it; one event brought in; one request sent.
//!
//! It is public because services' tests are other crates, and hidden because nothing else may use
//! it. A feature of its own would make every test build compile the chassis a second time; nothing
//! here is reached from a service's `main`, so the linker leaves it out.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Method, Request, header};
use axum::response::Response;
use chrono::{DateTime, Utc};
use rdkafka::Timestamp;
use rdkafka::message::{Header, OwnedHeaders, OwnedMessage};
use serde_json::Value;
use sqlx::migrate::Migrator;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection, PgPool};
use tokio_util::sync::{CancellationToken, DropGuard};
use tower::ServiceExt;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::announce::{self, Source};
use crate::avro::{Codec, frame};
use crate::commands::{self, Commands};
use crate::config::{Config, Secret};
use crate::db;
use crate::dead_letter::{Cause, Kind};
use crate::effect::{self, Admission, Trouble};
use crate::event::{Answer, At, Event, Impossible, Outcome, Outgoing};
use crate::loss::Loss;
use crate::probes::Heartbeats;
use crate::registry::Known;
use crate::route::{Item, Routes};
use crate::rows::{Rows, Touches};
use crate::wake::Wake;
use crate::watch::{Entry, Watch};
use crate::writes::Writes;
use crate::{environment, openapi, schema};

/// A database of its own for a test, with an owner and a server, on the cluster of
/// TEST_DATABASE_URL.
pub async fn fresh_database() -> (Secret, Secret) {
    let cluster = std::env::var("TEST_DATABASE_URL")
        .expect("TEST_DATABASE_URL is the superuser's URL of a throw-away cluster");
    let cluster = PgConnectOptions::from_str(&cluster).expect("the URL can be read");
    let mut db = PgConnection::connect_with(&cluster).await.expect("the cluster runs");
    let name = format!("t{}", Uuid::now_v7().simple());
    for statement in [
        format!("create role \"{name} owner\" login"),
        format!("create role \"{name} server\" login"),
        format!("create database {name} owner \"{name} owner\""),
        // No test here kills the server, and a disk that stands still is not what they are about: a
        // commit that waits for it for 2 s is cut.
        format!("alter database {name} set synchronous_commit = off"),
    ] {
        sqlx::query(AssertSqlSafe(statement)).execute(&mut db).await.expect("a superuser");
    }
    let at = format!("{}:{}/{name}", cluster.get_host(), cluster.get_port());
    let url = |role| Secret::from(format!("postgres://{name}%20{role}@{at}"));
    (url("owner"), url("server"))
}

/// A configuration that knows these databases, and neither Kafka nor registry.
pub fn config(owner: Secret, server: Secret) -> Config {
    environment::read_from(|name| match name {
        "DATABASE_URL" => Some(server.expose().to_owned()),
        "MIGRATION_DATABASE_URL" => Some(owner.expose().to_owned()),
        "KAFKA_BOOTSTRAP_SERVERS" => Some("nowhere".to_owned()),
        "SCHEMA_REGISTRY_URL" => Some("http://nowhere".to_owned()),
        _ => None,
    })
    .expect("all that is required is there")
}

/// Under which id the schema of what is brought in is known here.
const SCHEMA_ID: u32 = 1;

/// An event as it lies in Kafka.
fn record<E: Event>(id: Uuid, event: &E) -> OwnedMessage {
    let Outgoing { topic, key, body, .. } = Outgoing::of(event);
    let id = id.to_string();
    let headers = OwnedHeaders::new().insert(Header { key: "ce_id", value: Some(&id) });
    let (payload, key) = (Some(frame(SCHEMA_ID, &body)), Some(key.into_bytes()));
    OwnedMessage::new(payload, key, topic.name.into(), Timestamp::NotAvailable, 0, 0, Some(headers))
}

/// A service's database and writers, without its loops to Kafka. The writers end with it.
pub struct Bench<R: Rows> {
    service: &'static str,
    /// The pool of the serving role.
    pub db: PgPool,
    /// Where commands are handed over.
    pub commands: Commands<R>,
    wake: Arc<Wake>,
    _stop: DropGuard,
}

impl<R: Rows> Bench<R> {
    /// Makes a database, migrates it as its owner, and starts the writers as its server.
    pub async fn new(service: &'static str, migrator: Migrator) -> Bench<R> {
        let (owner, server) = fresh_database().await;
        let config = config(owner, server);
        schema::migrate(service, &config, migrator).await.expect("the migrations run");
        let db = schema::connect(service, &config).expect("the URL can be read");
        let heartbeat = Heartbeats::new().register("writers", Duration::from_secs(60));
        let wake = Arc::<Wake>::default();
        let (commands, writers) = commands::commands(service, db.clone(), wake.clone(), heartbeat);
        let stop = CancellationToken::new();
        tokio::spawn(writers.run(stop.clone()));
        Bench { service, db, commands, wake, _stop: stop.drop_guard() }
    }

    /// Where clients of this bench wait. With a wake of its own it is another replica's.
    pub fn watch<E: Entry>(&self, stop: &CancellationToken) -> Watch<E> {
        Watch::new(self.db.clone(), self.wake.clone(), stop.clone())
    }

    /// Where clients of another replica wait, on a pool of its own: what this bench commits is no
    /// hint there.
    pub fn watch_elsewhere<E: Entry>(&self, stop: &CancellationToken) -> Watch<E> {
        let db = self.db.options().clone().connect_lazy_with((*self.db.connect_options()).clone());
        Watch::new(db, Arc::default(), stop.clone())
    }

    /// Brings events of one type in, in one transaction, by the way that records from Kafka take.
    /// Answers the ids of what was published; an impossible event leaves nothing behind.
    pub async fn bring<E: Event, O: Outcome + 'static>(
        &self,
        events: &[(Uuid, &E)],
        handler: fn(&E, &mut R, At) -> Answer<O>,
    ) -> Result<Vec<Uuid>, Impossible>
    where
        R: Touches<E>,
    {
        let mut routes = Routes::of(self.service);
        routes.add(handler, |_, _| Loss::that("nothing is discarded here"));
        let written = Codec::new(E::topic().schema).expect("the schema is valid");
        let schemas = HashMap::from([(SCHEMA_ID, Known::Schema(Arc::new(written)))]);
        let records = events.iter().map(|(id, event)| record(*id, *event));
        let items: Vec<_> = records.map(|record| routes.item(record, &schemas)).collect();
        let unreadable = items.iter().find_map(Item::letter);
        assert!(unreadable.is_none(), "an event can't be read");
        let ids: Vec<Uuid> = events.iter().map(|(id, _)| *id).collect();
        let before = self.caused_by(&ids).await.len();
        let mut tx = db::begin(&self.db).await.expect("a transaction");
        match effect::take(&mut tx, &items, Admission::First, 1).await {
            Ok(effect) => {
                tx.commit().await.expect("the commit");
                effect.committed(&self.wake);
            }
            Err(Trouble::Event(_, Cause { kind: Kind::Impossible, reason })) => {
                return Err(Impossible(reason));
            }
            Err(Trouble::Event(_, cause)) => panic!("{}", cause.reason),
            Err(Trouble::Database(error)) => panic!("the database refuses it: {error}"),
            Err(Trouble::Waiting(because)) => panic!("it waits: {because}"),
        }
        Ok(self.caused_by(&ids).await.split_off(before))
    }

    /// The ids of what waits in the outbox because of these events.
    async fn caused_by(&self, ids: &[Uuid]) -> Vec<Uuid> {
        sqlx::query_scalar("select event_id from outbox where cause = any($1) order by position")
            .bind(ids)
            .fetch_all(&self.db)
            .await
            .expect("the outbox")
    }

    /// What waits in the outbox, in its order: topic, key and event id.
    pub async fn outbox(&self) -> Vec<(String, String, Uuid)> {
        sqlx::query_as("select topic, key, event_id from outbox order by position")
            .fetch_all(&self.db)
            .await
            .expect("the outbox")
    }

    /// What waits in the outbox, in its order, as it will lie in its topic: id, topic, key, schema,
    /// body and time.
    pub async fn said(&self) -> Vec<Said> {
        sqlx::query_as(
            "select event_id, topic, key, schema_fingerprint, body, occurred_at
             from outbox order by position",
        )
        .fetch_all(&self.db)
        .await
        .expect("the outbox")
    }

    /// Asks for what was published to be announced again. Answers what the operator reads, and what
    /// went into the outbox.
    pub async fn announced(
        &self,
        sources: impl IntoIterator<Item = Source>,
        wish: Value,
    ) -> (Answered, Vec<Said>) {
        let before = self.said().await.len();
        let operator = Client(announce::router(self.db.clone(), Arc::default(), sources));
        let answer = operator.post("/announce", None, wish).await;
        (answer, self.said().await.split_off(before))
    }

    /// How many rows a table has.
    pub async fn count(&self, table: &str) -> i64 {
        sqlx::query_scalar(AssertSqlSafe(format!("select count(*) from {table}")))
            .fetch_one(&self.db)
            .await
            .expect("the table")
    }

    /// Spoils what the books hold together, in one way after the other, and mends it: they say so each
    /// time. Each way is the statement that spoils and the one that mends.
    ///
    /// # Panics
    /// If they don't.
    pub async fn books_notice(&self, books: Router, ways: &[(&'static str, &'static str)]) {
        let books = Client(books);
        for (spoil, mend) in ways {
            for (statement, balanced) in [(*spoil, false), (*mend, true)] {
                sqlx::query(statement).execute(&self.db).await.expect(statement);
                let books = books.get("/books").await.body;
                assert_eq!(books["balanced"], balanced, "{statement}");
            }
        }
    }

    /// Runs a statement that the database has to refuse; answers the SQLSTATE that it says.
    pub async fn refused(&self, statement: &'static str) -> String {
        let refused = sqlx::query(statement).execute(&self.db).await.expect_err(statement);
        let refused = refused.into_database_error().expect("the database refuses it");
        refused.code().expect("it says why").into_owned()
    }
}

/// What a batch writes, on a transaction of a test's own.
pub fn writes(tx: &mut PgConnection) -> Writes<'_> {
    Writes::of(tx)
}

/// An event in the outbox: id, topic, key, schema, body and time.
pub type Said = (Uuid, String, String, Vec<u8>, Vec<u8>, DateTime<Utc>);

/// What a client gets.
#[derive(Debug)]
pub struct Answered {
    /// The HTTP status.
    pub status: u16,
    /// The header `Location`.
    pub location: Option<String>,
    /// The body; null where it is no JSON.
    pub body: Value,
}

/// A client of a router, without a socket between them.
#[derive(Clone)]
pub struct Client(pub Router);

impl Client {
    /// Asks for something.
    pub async fn get(&self, uri: &str) -> Answered {
        self.send(Method::GET, uri, None, None).await
    }

    /// Sends a wish.
    pub async fn put(&self, uri: &str, body: Value) -> Answered {
        self.send(Method::PUT, uri, None, Some(body)).await
    }

    /// Sends a wish, with an idempotency key or without.
    pub async fn post(&self, uri: &str, key: Option<&str>, body: Value) -> Answered {
        self.send(Method::POST, uri, key, Some(body)).await
    }

    /// Asks with headers of one's own, and reads the answer as it comes.
    pub async fn ask(&self, uri: &str, headers: &[(&'static str, &str)]) -> Response {
        let mut request = Request::get(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).expect("a request");
        self.0.clone().oneshot(request).await.expect("routers don't fail")
    }

    async fn send(
        &self,
        method: Method,
        uri: &str,
        key: Option<&str>,
        body: Option<Value>,
    ) -> Answered {
        let mut request = Request::builder().method(method).uri(uri);
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let body = match body {
            None => Body::empty(),
            Some(json) => {
                request = request.header(header::CONTENT_TYPE, "application/json");
                Body::from(json.to_string())
            }
        };
        let request = request.body(body).expect("a request");
        let response = self.0.clone().oneshot(request).await.expect("routers don't fail");
        let location = response.headers().get(header::LOCATION);
        let location = location.and_then(|place| Some(place.to_str().ok()?.to_owned()));
        let status = response.status().as_u16();
        let body = axum::body::to_bytes(response.into_body(), 1 << 22).await.expect("a body");
        Answered { status, location, body: serde_json::from_slice(&body).unwrap_or_default() }
    }
}

/// Compares a service's committed description of its API with its code; rewrites it where
/// `REWRITE_OPENAPI` is set, as `make openapi` does.
pub fn compare_openapi<S>(service: &str, folder: &str, routes: &OpenApiRouter<S>)
where
    S: Clone + Send + Sync + 'static,
{
    let (path, said) = (format!("{folder}/openapi.json"), openapi::document(service, routes));
    if std::env::var_os("REWRITE_OPENAPI").is_some() {
        std::fs::write(&path, said).expect("the file can be written");
        return;
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    let mut lines = committed.lines().zip(said.lines()).enumerate();
    let differing = lines.find(|(_, (committed, said))| committed != said);
    let differing = differing.map_or(String::new(), |(nth, (committed, said))| {
        format!("; line {}: {committed:?} is now {said:?}", nth + 1)
    });
    assert!(
        committed == said,
        "services/{service}/openapi.json is not what the code says{differing}. \
         `make openapi` rewrites it."
    );
}
