//! An HTTP server with short timeouts and small buffers, and a client that sends bytes to it.

use std::future::pending;
use std::net::SocketAddr;

use axum::Router;
use axum::http::header;
use axum::routing::{get, post};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::http::limits::Limits;
use crate::http::server::serve;
use crate::http::tls::TlsAcceptor;

pub const SHORT_TIMEOUT: Duration = Duration::from_millis(300);
/// Far beyond every timeout in these tests: a stream that is open for this long never ends.
pub const LONG_TIMEOUT: Duration = Duration::from_secs(5);

pub struct TestServer {
    pub addr: SocketAddr,
    pub stop: CancellationToken,
    serving: JoinHandle<anyhow::Result<()>>,
}

pub fn limits() -> Limits {
    let quick = Limits {
        header_timeout: SHORT_TIMEOUT,
        idle_timeout: SHORT_TIMEOUT,
        slot_grace: SHORT_TIMEOUT,
        request_timeout: SHORT_TIMEOUT,
        ..Limits::default()
    };
    Limits { unread_timeout: SHORT_TIMEOUT, connections_max: 4, ..quick }
}

pub async fn start_server(limits: Limits) -> TestServer {
    start_server_with(None, limits, LONG_TIMEOUT).await
}

pub async fn start_server_with(
    tls: Option<TlsAcceptor>,
    limits: Limits,
    drain: Duration,
) -> TestServer {
    let router = Router::new()
        .route("/", get(async || "here"))
        .route("/stream", get(async || ([(header::CACHE_CONTROL, "no-cache")], "own rule")))
        .route("/echo", post(async |body: String| body))
        .route("/panic", get(async || -> String { panic!("on purpose") }))
        .route("/huge", get(async || "x".repeat(50_000_000)))
        .route("/slow", get(slow_handler))
        .route("/never", get(pending::<&str>).post(pending::<&str>));
    // All buffers are small, so that a large send waits for its peer to read.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(16 * 1024).unwrap();
    socket.set_send_buffer_size(16 * 1024).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1024).unwrap();
    let (addr, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let ended = tokio::spawn(serve(listener, tls, router, limits, stop.clone(), drain));
    TestServer { addr, stop, serving: ended }
}

pub async fn slow_handler() -> &'static str {
    sleep(Duration::from_millis(600)).await;
    "at last"
}

impl TestServer {
    pub async fn send(&self, text: &str) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_send_buffer_size(16 * 1024).unwrap();
        socket.set_recv_buffer_size(16 * 1024).unwrap();
        let mut stream = socket.connect(self.addr).await.unwrap();
        stream.write_all(text.as_bytes()).await.unwrap();
        stream
    }

    /// Everything until the server closes the connection.
    pub async fn send_and_read(&self, text: &str) -> String {
        read_to_end(self.send(text).await).await
    }

    pub async fn get(&self, path: &str) -> String {
        self.send_and_read(&format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n")).await
    }

    pub async fn shut_down(self) -> Duration {
        let began = Instant::now();
        self.stop.cancel();
        timeout(LONG_TIMEOUT, self.serving).await.unwrap().unwrap().unwrap();
        began.elapsed()
    }
}

pub async fn read_to_end(mut stream: impl AsyncRead + Unpin) -> String {
    let mut answer = String::new();
    timeout(LONG_TIMEOUT, stream.read_to_string(&mut answer))
        .await
        .expect("the server closes")
        .unwrap();
    answer
}

/// One response, on a connection that may stay open.
pub async fn read_one_response(mut stream: TcpStream) -> String {
    let mut answer = [0; 512];
    let read = stream.read(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

pub const REQUEST: &str = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";

/// Sends another request on a connection. Returns the response, or nothing if the connection was closed.
pub async fn request_again(kept: &mut TcpStream) -> String {
    let mut answer = [0; 512];
    let _ = kept.write_all(REQUEST.as_bytes()).await;
    let read = timeout(LONG_TIMEOUT, kept.read(&mut answer)).await.expect("an answer or an end");
    String::from_utf8_lossy(&answer[..read.unwrap_or(0)]).into_owned()
}

pub fn assert_problem(answer: &str, status: &str, kind: &str) {
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    assert!(answer.contains("content-type: application/problem+json"), "{answer}");
    assert!(answer.contains(&format!("\"/problems/{kind}\"")), "{answer}");
}
