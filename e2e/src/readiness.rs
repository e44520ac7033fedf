//! Whether a member answers: asked of the member itself, over the wire, and never of its log.

use std::time::Duration;

use anyhow::Result;
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use crate::topology::{HOST, Layout, Member};

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
            Member::Registry => http_answers(&format!("{}/subjects", layout.registry_url())).await,
            Member::Service { .. } => {
                let probe = layout.of_instance(&member.to_string()).ok()?.probe;
                http_answers(&format!("http://{HOST}:{probe}/readyz")).await
            }
        }
    };
    matches!(
        tokio::time::timeout(ANSWER_WITHIN, answer).await,
        Ok(Some(()))
    )
}

async fn http_answers(url: &str) -> Option<()> {
    // Loopback is never asked through a proxy, whatever the user's environment says.
    let client = reqwest::Client::builder().no_proxy().build().ok()?;
    client
        .get(url)
        .send()
        .await
        .ok()?
        .error_for_status()
        .ok()
        .map(|_| ())
}

/// The broker is in its own metadata once it may serve.
async fn kafka_answers(port: u16) -> Option<()> {
    // Asked first because Kafka's client, once refused, waits before it asks again.
    tokio::net::TcpStream::connect((HOST, port)).await.ok()?;
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
