//! The inside of the chassis for the crate `holdfast-testing` and for the tests of this crate. It is public because
//! they are other crates, and hidden because nothing else may use it: it may change with every version. With a feature
//! of its own, every test build would compile the chassis a second time; no `main` of a service reaches this code, so
//! the linker omits it.

use std::str::FromStr;
use std::time::Duration;

use axum::{Extension, Router};
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::config::{Config, KeyLocation, Secret, TokenConfig, env};
pub use crate::http::callers::authorize::operators_only;
use crate::http::callers::caller::Caller;
pub use crate::http::callers::identify::Callers;
use crate::http::limits::Limits;
use crate::http::server;

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
