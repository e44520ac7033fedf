//! IPv6 addresses in every setting that holds an address, and ports that listen for both kinds of clients.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use rdkafka::producer::BaseProducer;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::env::read_from;
use crate::config::{Config, address};
use crate::http::limits::Limits;
use crate::http::server;
use crate::kafka;
use crate::kafka::schema_registry::SchemaRegistryClient;
use crate::service::process;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

async fn listen_on_loopback() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.expect("the machine has IPv6");
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn config(kafka: SocketAddr, registry: SocketAddr) -> Config {
    let config = read_from(|name| match name {
        "DATABASE_URL" => Some("postgres://till@[::1]/till".to_owned()),
        "KAFKA_BOOTSTRAP_SERVERS" => Some(kafka.to_string()),
        "SCHEMA_REGISTRY_URL" => Some(format!("http://{registry}/")),
        _ => None,
    });
    config.unwrap()
}

#[tokio::test]
async fn broker_registry_and_database_are_reached_by_an_ipv6_address() {
    let ((broker, kafka), (listener, registry)) =
        (listen_on_loopback().await, listen_on_loopback().await);
    let config = config(kafka, registry);

    let _client: BaseProducer = kafka::client_config("till", &config.kafka).create().unwrap();
    timeout(CONNECT_TIMEOUT, broker.accept()).await.expect("the client connects").unwrap();

    let answer = async || axum::Json(json!({ "id": 7 }));
    let router = Router::new().route("/subjects/till.counted-value", post(answer));
    tokio::spawn(async { axum::serve(listener, router).await });
    let registry = SchemaRegistryClient::new(&config.schema_registry).unwrap();
    assert_eq!(registry.get_id("till.counted", b"", "{}").await.unwrap(), 7);

    let options = address::postgres_options(config.database_url.expose()).unwrap();
    assert_eq!(options.get_host(), "::1", "brackets belong to the URL and not to the address");
    assert_eq!(options.get_port(), 5432);
}

#[tokio::test]
async fn an_unspecified_ipv6_address_serves_ipv4_and_ipv6_clients_and_the_health_check() {
    let listener = server::listen((Ipv6Addr::UNSPECIFIED, 0).into()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new().route("/readyz", get(async || "ready"));
    let (limits, stop, drain) = (Limits::default(), CancellationToken::new(), Duration::ZERO);
    tokio::spawn(server::serve(listener, None, router, limits, stop.clone(), drain));
    for ip in [IpAddr::from(Ipv4Addr::LOCALHOST), Ipv6Addr::LOCALHOST.into()] {
        TcpStream::connect((ip, port)).await.unwrap();
        process::check_health((ip, port).into()).await.unwrap();
    }
    process::check_health((Ipv6Addr::UNSPECIFIED, port).into()).await.unwrap();
    process::check_health((Ipv4Addr::UNSPECIFIED, port).into()).await.unwrap();
    stop.cancel();
    // A service that listens on IPv6 only.
    let listener = server::listen((Ipv6Addr::LOCALHOST, 0).into()).unwrap();
    let port = listener.local_addr().unwrap().port();
    let router = Router::new().route("/readyz", get(async || "ready"));
    tokio::spawn(server::serve(listener, None, router, limits, CancellationToken::new(), drain));
    process::check_health((Ipv6Addr::UNSPECIFIED, port).into()).await.unwrap();
}
