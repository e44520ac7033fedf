//! Clients with keep-alive connections: each sends a request at intervals, and reconnects when the
//! server closes its connection.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// The timeout of a response, or of a connection attempt.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The clients; they end when this is dropped.
pub struct KeepAliveClients {
    _clients: JoinSet<()>,
    responses: Arc<AtomicU64>,
}

impl KeepAliveClients {
    /// Starts this number of clients of `address` (`127.0.0.1:8001`), each with one `GET` of `path`
    /// per `interval`.
    pub fn start(
        address: &str,
        path: &str,
        clients: usize,
        interval: Duration,
    ) -> KeepAliveClients {
        let answered = Arc::<AtomicU64>::default();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        let client = |_| {
            let (address, request) = (address.to_string(), request.clone());
            let answered = answered.clone();
            async move {
                loop {
                    let _ = run_client(&address, &request, interval, &answered).await;
                    sleep(Duration::from_millis(200)).await;
                }
            }
        };
        KeepAliveClients {
            _clients: (0..clients).map(client).collect(),
            responses: answered.clone(),
        }
    }

    /// The number of responses so far.
    pub fn response_count(&self) -> u64 {
        self.responses.load(Ordering::Relaxed)
    }
}

async fn run_client(
    address: &str,
    request: &str,
    interval: Duration,
    answered: &AtomicU64,
) -> Result<()> {
    let mut stream = timeout(REQUEST_TIMEOUT, TcpStream::connect(address)).await??;
    loop {
        stream.write_all(request.as_bytes()).await?;
        let head = timeout(REQUEST_TIMEOUT, read_response(&mut stream)).await??;
        answered.fetch_add(1, Ordering::Relaxed);
        if head.contains("connection: close") {
            return Ok(());
        }
        sleep(interval).await;
    }
}

/// Reads one response, and returns its header in lower case.
async fn read_response(stream: &mut TcpStream) -> Result<String> {
    let mut read = Vec::new();
    loop {
        let end = read.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.context("a response without a length")?.parse()?;
            if read.len() >= end + 4 + length {
                return Ok(head);
            }
        }
        anyhow::ensure!(stream.read_buf(&mut read).await? > 0, "the connection ended");
    }
}
