//! A record that librdkafka cannot write: Kafka accepts any bytes as the name of a header, and the
//! library only text. So the request is encoded by hand.

use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use chrono::Utc;
use launcher::HOST;
use openssl::ssl::{SslConnector, SslFiletype, SslMethod};
use rdkafka::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// Writes a record whose only header has this name and an empty value, and returns its offset. The
/// leader of the partition is not looked up: there must be only one broker.
pub async fn produce(
    kafka: &ClientConfig,
    (topic, partition): (&str, i32),
    key: &[u8],
    payload: &[u8],
    header_name: &[u8],
) -> Result<i64> {
    let header = [varint(1), varint_prefixed(header_name), varint_prefixed(b"")].concat();
    // No attributes, and zero deltas of time and offset.
    let record = [vec![0_u8; 3], varint_prefixed(key), varint_prefixed(payload), header].concat();
    let records = length_prefixed(&batch(&varint_prefixed(&record)));
    // Produce, in the oldest supported version; correlation id 0, no client id, no transaction;
    // acks=all, within 5 s.
    let asked = [0_i16, 3, 0, 0, -1, -1, -1, 0, 5_000].map(i16::to_be_bytes).concat();
    let name = [&(topic.len() as i16).to_be_bytes()[..], topic.as_bytes()].concat();
    let (one, partition) = (1_i32.to_be_bytes(), partition.to_be_bytes());
    let request = [&asked[..], &one, &name, &one, &partition, &records].concat();
    let answer = async {
        let mut stream = connect(kafka).await?;
        stream.write_all(&length_prefixed(&request)).await?;
        // The length, the correlation id, one topic by name, one partition by number.
        stream.read_exact(&mut vec![0_u8; 4 + 4 + 4 + name.len() + 4 + 4]).await?;
        anyhow::Ok((stream.read_i16().await?, stream.read_i64().await?))
    };
    let answer = tokio::time::timeout(RESPONSE_TIMEOUT, answer).await;
    let (error, offset) = answer.context("Kafka does not answer")??;
    ensure!(error == 0, "Kafka refuses the record with error {error}");
    Ok(offset)
}

/// A connection to the first broker, over TLS with a certificate if the settings have one.
async fn connect(kafka: &ClientConfig) -> Result<Pin<Box<dyn Stream>>> {
    let broker = kafka.get("bootstrap.servers").context("the settings name no broker")?;
    let stream = TcpStream::connect(broker).await?;
    let (Some(ca), Some(certificate)) =
        (kafka.get("ssl.ca.location"), kafka.get("ssl.certificate.location"))
    else {
        return Ok(Box::pin(stream));
    };
    let mut connector = SslConnector::builder(SslMethod::tls_client())?;
    connector.set_ca_file(ca)?;
    connector.set_certificate_chain_file(certificate)?;
    connector.set_private_key_file(certificate, SslFiletype::PEM)?;
    let mut stream = SslStream::new(connector.build().configure()?.into_ssl(HOST)?, stream)?;
    Pin::new(&mut stream).connect().await?;
    Ok(Box::pin(stream))
}

trait Stream: AsyncRead + AsyncWrite {}

impl<S: AsyncRead + AsyncWrite> Stream for S {}

/// A record batch with one record and no producer id.
fn batch(record: &[u8]) -> Vec<u8> {
    let (now, one) = (Utc::now().timestamp_millis().to_be_bytes(), 1_i32.to_be_bytes());
    // Attributes and last offset delta; first and last time; producer id, epoch and sequence;
    // number of records.
    let summed = [&[0_u8; 2 + 4][..], &now, &now, &[0xff_u8; 8 + 2 + 4], &one, record].concat();
    // The leader epoch, which the broker sets, and the version of this format.
    let rest = [&[0xff_u8; 4][..], &[2_u8], &crc32c(&summed).to_be_bytes(), &summed].concat();
    [vec![0_u8; 8], length_prefixed(&rest)].concat()
}

/// A byte string with a length of four bytes.
fn length_prefixed(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as i32).to_be_bytes()[..], bytes].concat()
}

/// A byte string with a length of variable size.
fn varint_prefixed(bytes: &[u8]) -> Vec<u8> {
    [varint(bytes.len()), bytes.to_vec()].concat()
}

/// A zigzag varint: seven bits a byte, the lowest first.
fn varint(number: usize) -> Vec<u8> {
    let (mut rest, mut bytes) = (number << 1, Vec::new());
    while rest >= 0x80 {
        bytes.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
    bytes
}

fn crc32c(bytes: &[u8]) -> u32 {
    let bit = |sum: u32, _: u32| (sum >> 1) ^ (0x82f6_3b78 & (sum & 1).wrapping_neg());
    !bytes.iter().fold(!0_u32, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), bit))
}

#[test]
fn a_batch_is_summed_and_its_parts_are_measured_as_kafka_does() {
    assert_eq!(crc32c(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
    assert_eq!([varint(1), varint(63), varint(64)].concat(), [2, 126, 128, 1]);
}
