//! Requests of Kafka's protocol that the client library has no call for: rules of access, passwords and
//! quotas. The library `kafka-protocol` encodes them; the connection is TLS with a client certificate.

use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::{Bytes, BytesMut};
use chassis::config::KafkaConfig;
use kafka_protocol::messages::{RequestHeader, ResponseHeader};
use kafka_protocol::protocol::{
    Decodable, HeaderVersion, Request, StrBytes, encode_request_header_into_buffer,
};
use openssl::ssl::{SslConnector, SslFiletype, SslMethod};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_openssl::SslStream;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);

/// A larger response is no answer to a request of this program.
const RESPONSE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// A connection to one broker, which passes changes on to the controller.
pub struct KafkaAdmin {
    stream: SslStream<TcpStream>,
    correlation_id: i32,
}

impl KafkaAdmin {
    /// Connects to the first broker that can be reached.
    pub async fn connect(config: &KafkaConfig) -> Result<KafkaAdmin> {
        let mut last = anyhow::anyhow!("there is no broker");
        for broker in config.kafka_bootstrap_servers.split(',') {
            match timeout(CONNECT_TIMEOUT, connect(config, broker)).await {
                Ok(Ok(stream)) => return Ok(KafkaAdmin { stream, correlation_id: 0 }),
                Ok(Err(error)) => last = error.context(format!("{broker} cannot be reached")),
                Err(_) => last = anyhow::anyhow!("{broker} does not answer"),
            }
        }
        Err(last)
    }

    /// Sends one request and waits for its response.
    pub async fn send<R: Request>(&mut self, version: i16, request: &R) -> Result<R::Response> {
        let name = std::any::type_name::<R>().rsplit("::").next().unwrap_or_default();
        timeout(REQUEST_TIMEOUT, self.exchange(version, request))
            .await
            .with_context(|| format!("Kafka did not answer {name} within {REQUEST_TIMEOUT:?}"))?
            .with_context(|| format!("{name} failed"))
    }

    async fn exchange<R: Request>(&mut self, version: i16, request: &R) -> Result<R::Response> {
        self.correlation_id += 1;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(self.correlation_id)
            .with_client_id(Some(StrBytes::from_static_str("contracts")));
        let mut sent = BytesMut::new();
        encode_request_header_into_buffer(&mut sent, &header)?;
        request.encode(&mut sent, version)?;
        self.stream.write_i32(i32::try_from(sent.len())?).await?;
        self.stream.write_all(&sent).await?;
        self.stream.flush().await?;
        let length = usize::try_from(self.stream.read_i32().await?)?;
        ensure!(length <= RESPONSE_BYTES_MAX, "the response has {length} bytes");
        let mut received = vec![0; length];
        self.stream.read_exact(&mut received).await?;
        let mut received = Bytes::from(received);
        let header = ResponseHeader::decode(&mut received, R::Response::header_version(version))?;
        ensure!(
            header.correlation_id == self.correlation_id,
            "it is the response to another request"
        );
        R::Response::decode(&mut received, version)
    }
}

async fn connect(config: &KafkaConfig, broker: &str) -> Result<SslStream<TcpStream>> {
    let (Some(certificate), Some(key)) =
        (&config.kafka_ssl_certificate_location, &config.kafka_ssl_key_location)
    else {
        bail!("KAFKA_SSL_CERTIFICATE_LOCATION is not set");
    };
    let mut connector = SslConnector::builder(SslMethod::tls_client())?;
    if let Some(ca) = &config.kafka_ssl_ca_location {
        connector.set_ca_file(ca)?;
    }
    connector.set_certificate_chain_file(certificate)?;
    connector.set_private_key_file(key, SslFiletype::PEM)?;
    let (host, _) = broker.rsplit_once(':').context("a broker has a port")?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tls = connector.build().configure()?.into_ssl(host)?;
    let mut stream = SslStream::new(tls, TcpStream::connect(broker).await?)?;
    Pin::new(&mut stream).connect().await?;
    Ok(stream)
}
