//! The attacks: what a hostile client does with its connection, and how long the service keeps the
//! connection open.

use std::io;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
use tokio::time::{Instant, sleep};

use self::AttackKind::*;
use crate::scenarios::hostile::target::{Connection, Target};

/// A declared body size far above the limit.
const HUGE_BODY_BYTES: usize = 64 * 1024 * 1024;

/// For how long a client renews its half-open connection: longer than a header may take.
const RENEWAL_TIME: Duration = Duration::from_secs(15);

/// What a hostile client does with its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttackKind {
    /// Sends a byte of a header every second, and never completes it.
    SlowHeader,
    /// Completes the header, and sends a byte of the body every second.
    SlowBody,
    /// Sends a body of almost the largest size in chunks of one byte, without an end.
    TinyChunks,
    /// Sends a body far above the limit.
    HugeBody,
    /// Requests a long response and never reads it.
    NeverReads,
    /// Connects, and sends nothing.
    Silent,
    /// Sends half a header, and does so again for a while whenever the service closes the connection.
    HalfOpen,
}

/// The result of one attack.
pub struct AttackReport {
    /// Whether it got a connection.
    pub connected: bool,
    /// How long until the service closed it, or the slowest of them.
    pub duration: Duration,
}

impl AttackKind {
    pub const ALL: [AttackKind; 7] =
        [SlowHeader, SlowBody, TinyChunks, HugeBody, NeverReads, Silent, HalfOpen];

    /// Whether such clients occupy connections and make no complete request.
    pub fn is_silent(self) -> bool {
        matches!(self, Silent | HalfOpen)
    }

    pub fn description(self) -> &'static str {
        match self {
            SlowHeader => "headers that never end",
            SlowBody => "bodies that never end",
            TinyChunks => "bodies in chunks of one byte",
            HugeBody => "bodies far too large",
            NeverReads => "clients that never read the response",
            Silent => "connections without a request",
            HalfOpen => "half-open connections, renewed",
        }
    }

    /// Attacks until the service closes the connection.
    pub async fn run(self, target: &Target) -> AttackReport {
        let (began, mut connected) = (Instant::now(), false);
        let mut slowest = Duration::ZERO;
        loop {
            let opened = Instant::now();
            if let Ok(connection) = self.connect(target).await {
                connected = true;
                // A reset connection is closed as well.
                let _ = self.try_run(connection, &target.authorization).await;
            }
            slowest = slowest.max(opened.elapsed());
            if self != HalfOpen || began.elapsed() > RENEWAL_TIME {
                return AttackReport { connected, duration: slowest };
            }
        }
    }

    async fn connect(self, target: &Target) -> Result<Box<dyn Connection>> {
        match self {
            // Without a byte, so it does not begin to encrypt either.
            Silent => Ok(Box::new(target.connect().await?)),
            _ => target.open().await,
        }
    }

    async fn try_run(self, mut stream: Box<dyn Connection>, authorization: &str) -> io::Result<()> {
        let post = format!(
            "POST /orders HTTP/1.1\r\nHost: hostile\r\n{authorization}Content-Type: application/json\r\n"
        );
        match self {
            SlowHeader => {
                stream.write_all(b"GET /items HTTP/1.1\r\nX-Long: ").await?;
                send_slowly(&mut *stream).await
            }
            SlowBody => {
                let head = format!("{post}Content-Length: 32000\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                send_slowly(&mut *stream).await
            }
            TinyChunks => {
                let head = format!("{post}Transfer-Encoding: chunked\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                for _ in 0..32 {
                    stream.write_all("1\r\n \r\n".repeat(1_000).as_bytes()).await?;
                }
                send_slowly(&mut *stream).await
            }
            HugeBody => {
                let head = format!("{post}Content-Length: {HUGE_BODY_BYTES}\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
                let piece = [b' '; 64 * 1024];
                for _ in 0..HUGE_BODY_BYTES / piece.len() {
                    stream.write_all(&piece).await?;
                }
                send_slowly(&mut *stream).await
            }
            NeverReads => loop {
                stream.write_all(b"GET /openapi.json HTTP/1.1\r\nHost: hostile\r\n\r\n").await?;
                sleep(Duration::from_millis(20)).await;
            },
            HalfOpen => {
                stream.write_all(b"GET /items HTTP/1.1\r\nHost: hostile\r\n").await?;
                stream.read_to_end(&mut Vec::new()).await.map(drop)
            }
            Silent => stream.read_to_end(&mut Vec::new()).await.map(drop),
        }
    }
}

/// Sends a byte a second until the other side closes.
async fn send_slowly(stream: &mut dyn Connection) -> io::Result<()> {
    let (mut reader, mut writer) = split(stream);
    let mut answer = Vec::new();
    let sending = async {
        loop {
            sleep(Duration::from_secs(1)).await;
            writer.write_all(b"a").await?;
            writer.flush().await?;
        }
    };
    tokio::select! {
        closed = reader.read_to_end(&mut answer) => closed.map(drop),
        cut = sending => cut,
    }
}
