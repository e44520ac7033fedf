//! Clients that keep their connections: each sends a request on it now and then, and connects again where it
//! is told to.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long an answer, or a connection, may take.
const WITHIN: Duration = Duration::from_secs(10);

/// The clients; they end when this is dropped.
pub struct KeptConnections {
    _clients: JoinSet<()>,
    answered: Arc<AtomicU64>,
}

impl KeptConnections {
    /// So many clients of `address` (`127.0.0.1:8001`), each with a `GET` of `path` in every `interval`.
    pub fn open(address: &str, path: &str, clients: usize, interval: Duration) -> KeptConnections {
        let answered = Arc::<AtomicU64>::default();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\n\r\n");
        let client = |_| {
            let (address, request) = (address.to_string(), request.clone());
            let answered = answered.clone();
            async move {
                loop {
                    let _ = keep(&address, &request, interval, &answered).await;
                    sleep(Duration::from_millis(200)).await;
                }
            }
        };
        KeptConnections { _clients: (0..clients).map(client).collect(), answered: answered.clone() }
    }

    /// How many requests were answered so far.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }
}

async fn keep(
    address: &str,
    request: &str,
    interval: Duration,
    answered: &AtomicU64,
) -> Result<()> {
    let mut stream = timeout(WITHIN, TcpStream::connect(address)).await??;
    loop {
        stream.write_all(request.as_bytes()).await?;
        let head = timeout(WITHIN, answer(&mut stream)).await??;
        answered.fetch_add(1, Ordering::Relaxed);
        if head.contains("connection: close") {
            return Ok(());
        }
        sleep(interval).await;
    }
}

/// Reads one answer whole; its header in lower case.
async fn answer(stream: &mut TcpStream) -> Result<String> {
    let mut read = Vec::new();
    loop {
        let end = read.windows(4).position(|four| four == b"\r\n\r\n");
        if let Some(end) = end {
            let head = String::from_utf8_lossy(&read[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.context("an answer without a length")?.parse()?;
            if read.len() >= end + 4 + length {
                return Ok(head);
            }
        }
        anyhow::ensure!(stream.read_buf(&mut read).await? > 0, "the connection ended");
    }
}
