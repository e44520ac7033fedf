//! Whether a member answers: asked of the member itself, over the wire, and never of its log.

use std::time::Duration;

use anyhow::Result;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::topology::{HOST, Layout, Member};

const REGISTRY_SUBJECTS: &str = "/apis/ccompat/v7/subjects";
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A database runs statements, Kafka is in its own metadata, registry and services say 2xx.
pub async fn answers(layout: &Layout, member: &Member) -> bool {
    let answer = async {
        match member {
            Member::Database(service) => {
                let url = layout.database_url(service, "postgres", "postgres").ok()?;
                connect(&url).await.ok()?.ping().await.ok()
            }
            Member::Kafka => kafka_answers(layout.ports.kafka).await,
            Member::Registry => http_answers(layout.ports.registry, REGISTRY_SUBJECTS).await,
            Member::Service { .. } => {
                let probe = layout.of_instance(&member.to_string()).ok()?.probe;
                http_answers(probe, "/readyz").await
            }
        }
    };
    matches!(tokio::time::timeout(ANSWER_WITHIN, answer).await, Ok(Some(())))
}

/// By hand: this is asked many times a second, and a client reads its certificates when it is made.
async fn http_answers(port: u16, path: &str) -> Option<()> {
    let mut connection = TcpStream::connect((HOST, port)).await.ok()?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n");
    connection.write_all(request.as_bytes()).await.ok()?;
    let mut status = [0; 10];
    connection.read_exact(&mut status).await.ok()?;
    (&status == b"HTTP/1.1 2").then_some(())
}

/// The broker is in its own metadata once it may serve.
async fn kafka_answers(port: u16) -> Option<()> {
    // Asked first because Kafka's client, once refused, waits before it asks again.
    TcpStream::connect((HOST, port)).await.ok()?;
    let ask = move || {
        let client: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", format!("{HOST}:{port}"))
            .set("reconnect.backoff.max.ms", "100")
            .set_log_level(rdkafka::config::RDKafkaLogLevel::Emerg)
            .create()
            .ok()?;
        let metadata = client.fetch_metadata(None, Duration::from_secs(2)).ok()?;
        (!metadata.brokers().is_empty()).then_some(())
    };
    tokio::task::spawn_blocking(ask).await.ok()?
}

pub async fn connect(url: &str) -> Result<PgConnection> {
    let options: PgConnectOptions = url.parse()?;
    Ok(options.disable_statement_logging().connect().await?)
}
