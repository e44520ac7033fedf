//! HTTPS keeps every bound of HTTP: a handshake that does not end, a client that does not answer, a stop.

use std::pin::Pin;

use openssl::ssl::{SslConnector, SslMethod, SslVersion};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;

use super::certificate::Certificate;
use super::test_server::*;
use super::*;
use crate::http::limits::Limits;
use crate::http::tls::TlsAcceptor;

impl Certificate {
    fn acceptor(&self) -> Option<TlsAcceptor> {
        Some(TlsAcceptor::from_files(self.path(), self.path()).unwrap())
    }

    /// A connection that trusts this certificate and no other, after its handshake.
    async fn connect(
        &self,
        server: &TestServer,
        newest: Option<SslVersion>,
    ) -> anyhow::Result<SslStream<TcpStream>> {
        let mut connector = SslConnector::builder(SslMethod::tls_client())?;
        connector.set_ca_file(self.path())?;
        connector.set_max_proto_version(newest)?;
        connector.set_alpn_protos(b"\x02h2\x08http/1.1")?;
        let ssl = connector.build().configure()?.into_ssl("127.0.0.1")?;
        let mut stream = SslStream::new(ssl, TcpStream::connect(server.addr).await?)?;
        Pin::new(&mut stream).connect().await?;
        Ok(stream)
    }
}

#[tokio::test]
async fn https_serves_clients_that_trust_the_certificate_and_only_with_current_tls() {
    let (own, other) = (Certificate::new("own"), Certificate::new("other"));
    let server = start_server_with(own.acceptor(), limits(), LONG_TIMEOUT).await;
    for newest in [None, Some(SslVersion::TLS1_2)] {
        let mut stream = own.connect(&server, newest).await.unwrap();
        assert_eq!(stream.ssl().selected_alpn_protocol(), Some(&b"http/1.1"[..]));
        stream.write_all(REQUEST.as_bytes()).await.unwrap();
        assert!(read_to_end(stream).await.ends_with("here"), "an idle connection ends");
    }
    assert!(own.connect(&server, Some(SslVersion::TLS1_1)).await.is_err());
    assert!(other.connect(&server, None).await.is_err());
    let mut answer = Vec::new();
    let _ = server.send(REQUEST).await.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "plain HTTP");
}

#[tokio::test]
async fn a_large_body_and_a_large_answer_cross_tls() {
    let own = Certificate::new("large");
    let server = start_server_with(own.acceptor(), limits(), LONG_TIMEOUT).await;
    let mut stream = own.connect(&server, None).await.unwrap();
    let body = "x".repeat(30_000);
    let head = format!("content-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let request = format!("POST /echo HTTP/1.1\r\nhost: a\r\n{head}{body}");
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = read_to_end(stream).await;
    assert!(answer.ends_with(&body), "{} bytes: {answer:.300}", answer.len());
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut_and_takes_no_slot_for_longer() {
    let own = Certificate::new("silent");
    let server = start_server_with(own.acceptor(), limits(), LONG_TIMEOUT).await;
    let began = Instant::now();
    // As many as there are slots, and each says nothing or half of a hello.
    let mut silent = Vec::new();
    for text in ["", "\x16\x03\x01", "", "\x16"] {
        silent.push(server.send(text).await);
    }
    let mut stream = own.connect(&server, None).await.unwrap();
    assert!(began.elapsed() >= SHORT_TIMEOUT, "it waits for a slot");
    assert!(began.elapsed() < SHORT_TIMEOUT * 4, "{:?}", began.elapsed());
    stream.write_all(REQUEST.as_bytes()).await.unwrap();
    assert!(read_to_end(stream).await.ends_with("here"));
}

#[tokio::test]
async fn a_stop_finishes_the_request_under_way_and_does_not_wait_for_a_handshake() {
    let own = Certificate::new("stop");
    let patient =
        Limits { header_timeout: LONG_TIMEOUT, request_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server_with(own.acceptor(), patient, LONG_TIMEOUT).await;
    let mut slow = own.connect(&server, None).await.unwrap();
    slow.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let silent = server.send("").await;
    sleep(SHORT_TIMEOUT).await;
    let stopped = server.shut_down();
    let (took, answer) = tokio::join!(stopped, read_to_end(slow));
    assert!(answer.ends_with("at last"), "{answer}");
    assert!(took < LONG_TIMEOUT, "{took:?}");
    drop(silent);
}

/// Connections that are open go on; new ones are shown the new certificate. A key of another certificate changes
/// nothing.
#[tokio::test]
async fn a_replaced_certificate_is_presented_to_new_connections_and_ends_no_open_one() {
    let (old, new) = (Certificate::new("replaced"), Certificate::new("replacement"));
    let acceptor = old.acceptor().unwrap();
    let patient = Limits { header_timeout: LONG_TIMEOUT, idle_timeout: LONG_TIMEOUT, ..limits() };
    let server = start_server_with(Some(acceptor.clone()), patient, LONG_TIMEOUT).await;
    let mut open = old.connect(&server, None).await.unwrap();
    assert!(acceptor.replace(new.path(), old.path()).is_err());
    old.connect(&server, None).await.unwrap();
    acceptor.replace(new.path(), new.path()).unwrap();
    assert!(old.connect(&server, None).await.is_err());
    let mut fresh = new.connect(&server, None).await.unwrap();
    for stream in [&mut open, &mut fresh] {
        stream.write_all(REQUEST.as_bytes()).await.unwrap();
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 200");
    }
}

#[test]
fn files_that_are_no_certificate_or_no_key_are_refused_by_the_name_of_their_variable() {
    let (own, other) = (Certificate::new("named"), Certificate::new("unnamed"));
    let [modern, older, plain] = own.in_other_forms();
    TlsAcceptor::from_files(own.path(), plain.path()).unwrap();
    let text = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    const CERTIFICATE: &str = "HTTP_TLS_CERTIFICATE_LOCATION holds no certificate";
    for (certificate, key, why) in [
        (text, own.path(), CERTIFICATE),
        (own.path(), text, "HTTP_TLS_KEY_LOCATION holds no private key"),
        (own.path(), other.path(), "HTTP_TLS_KEY_LOCATION holds the key of another certificate"),
        (own.path(), modern.path(), "HTTP_TLS_KEY_LOCATION holds an encrypted key"),
        (own.path(), older.path(), "HTTP_TLS_KEY_LOCATION holds an encrypted key"),
    ] {
        let error = TlsAcceptor::from_files(certificate, key).err().unwrap().to_string();
        assert!(error.starts_with(why) && error.ends_with('.'), "{error}");
        let replaced = own.acceptor().unwrap().replace(certificate, key);
        assert_eq!(replaced.unwrap_err().to_string(), error, "at a reload");
    }
}
