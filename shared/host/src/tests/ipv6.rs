//! IPv6 addresses in every setting that holds an address, and ports that listen for both kinds of clients.

use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post};
use rdkafka::producer::BaseProducer;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::config::tests::parse_config;
use crate::config::{Config, address};
use crate::http::limits::Limits;
use crate::http::{listeners, server};
use crate::service::process;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

async fn listen_on_loopback() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.expect("the machine has IPv6");
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn config(kafka: SocketAddr, registry: SocketAddr) -> Config {
    let config = parse_config(&[
        ("DATABASE_URL", "postgres://till@[::1]/till"),
        ("KAFKA_BOOTSTRAP_SERVERS", &kafka.to_string()),
        ("SCHEMA_REGISTRY_URL", &format!("http://{registry}/")),
    ]);
    config.unwrap()
}

#[tokio::test]
async fn broker_registry_and_database_are_reached_by_an_ipv6_address() {
    let ((broker, kafka), (listener, registry)) =
        (listen_on_loopback().await, listen_on_loopback().await);
    let config = config(kafka, registry);

    let _client: BaseProducer = config.kafka.client_config("till").create().unwrap();
    timeout(CONNECT_TIMEOUT, broker.accept()).await.expect("the client connects").unwrap();

    let answer = async || axum::Json(json!({ "id": 7 }));
    let router = Router::new().route("/subjects/till.counted-value", post(answer));
    tokio::spawn(async { axum::serve(listener, router).await });
    let registry = config.schema_registry.client().unwrap();
    assert_eq!(registry.get_id("till.counted", b"", "\"null\"").await.unwrap().id, 7);

    let options = address::postgres_options(config.database_url.expose()).unwrap();
    assert_eq!(options.get_host(), "::1", "brackets belong to the URL and not to the address");
    assert_eq!(options.get_port(), 5432);
}

/// Serves at an address, and returns the port.
fn serve_at(addr: IpAddr, stop: &CancellationToken) -> u16 {
    let listeners = listeners::listen((addr, 0).into()).unwrap();
    let port = listeners.local_addr().unwrap().port();
    let router = Router::new().route("/readyz", get(async || "ready"));
    let (limits, drain) = (Limits::default(), Duration::ZERO);
    tokio::spawn(server::serve(listeners, None, router, limits, stop.clone(), drain));
    port
}

const LOOPBACK: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
const WILDCARDS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];

#[tokio::test]
async fn a_wildcard_and_loopback_serve_clients_of_both_families_and_the_health_check() {
    let stop = CancellationToken::new();
    for addr in [WILDCARDS, LOOPBACK].concat() {
        let port = serve_at(addr, &stop);
        for client in LOOPBACK {
            process::check_health((client, port).into()).await.unwrap();
        }
        for wildcard in WILDCARDS {
            process::check_health((wildcard, port).into()).await.unwrap();
        }
    }
    stop.cancel();
}

#[tokio::test]
async fn what_listens_on_loopback_or_at_one_address_is_reached_at_no_other_one() {
    let stop = CancellationToken::new();
    let elsewhere = Ipv4Addr::new(127, 0, 0, 2);
    for addr in LOOPBACK {
        let port = serve_at(addr, &stop);
        TcpStream::connect((elsewhere, port)).await.unwrap_err();
    }
    let port = serve_at(elsewhere.into(), &stop);
    for client in LOOPBACK {
        TcpStream::connect((client, port)).await.unwrap_err();
    }
    stop.cancel();
}

#[tokio::test]
async fn a_port_that_another_program_has_in_the_other_family_is_taken() {
    let (_taken, addr) = listen_on_loopback().await;
    let refused = listeners::listen((Ipv4Addr::LOCALHOST, addr.port()).into()).err().unwrap();
    assert_eq!(refused.kind(), ErrorKind::AddrInUse);
}
