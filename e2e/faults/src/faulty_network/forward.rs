//! Forwards the bytes of one connection in both directions, through the toxics of that moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::faulty_network::toxics::{Direction, Toxics};

/// The number of bytes read at a time, and of chunks in flight in one direction. Beyond that the
/// proxy stops reading, and the sender's window fills.
const CHUNK_BYTES: usize = 16 * 1024;
const CHUNKS_IN_FLIGHT_MAX: usize = 64;

/// How long a server has to respond to a commit whose response is discarded.
const RESPONSE_DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The state that all connections of a proxy share.
#[derive(Clone)]
pub(super) struct ProxyState {
    pub(super) toxics: watch::Sender<Toxics>,
    /// The number of resets: each one ends all open connections.
    pub(super) resets: watch::Sender<u64>,
    pub(super) commits_cut: Arc<AtomicU64>,
    pub(super) bytes_forwarded: Arc<AtomicU64>,
    pub(super) affected: Arc<AtomicU64>,
}

/// How a connection ended.
enum ConnectionEnd {
    Closed,
    Reset,
    AfterCommit,
}

pub(super) async fn forward_connection(
    mut client: TcpStream,
    mut server: TcpStream,
    mut resets: watch::Receiver<u64>,
    state: &ProxyState,
) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            ended = forward(from_client, to_server, state, Direction::Requests) => ended,
            ended = forward(from_server, to_client, state, Direction::Responses) => ended,
            _ = resets.changed() => ConnectionEnd::Reset,
        }
    };
    match ended {
        ConnectionEnd::Closed => {}
        ConnectionEnd::Reset => drop((client.set_zero_linger(), server.set_zero_linger())),
        ConnectionEnd::AfterCommit => {
            state.commits_cut.fetch_add(1, Ordering::Relaxed);
            drop((client.set_zero_linger(), client));
            // A reset could overtake the commit. So the proxy waits until the server has read the
            // commit and responded; only then does it close the connection.
            let _ = server.shutdown().await;
            let drain =
                async { while server.read(&mut [0; 512]).await.is_ok_and(|read| read > 0) {} };
            let _ = timeout(RESPONSE_DRAIN_TIMEOUT, drain).await;
        }
    }
}

/// Bytes in flight.
struct Chunk {
    bytes: Vec<u8>,
    deliver_at: Instant,
    bytes_per_second: Option<u32>,
    /// The connection ends when this has arrived.
    is_last: bool,
}

/// Forwards one direction until either side closes.
async fn forward(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    state: &ProxyState,
    direction: Direction,
) -> ConnectionEnd {
    let (queue, mut due) = mpsc::channel::<Chunk>(CHUNKS_IN_FLIGHT_MAX);
    let mut toxics_changes = state.toxics.subscribe();
    let reading = async move {
        let (mut bytes, mut commits) = (vec![0; CHUNK_BYTES], CommitScanner::default());
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            let toxics = *state.toxics.borrow();
            let bytes = bytes[..count].to_vec();
            let is_last = direction == Direction::Requests
                && commits.contains_commit(&bytes)
                && rand::random_range(0..100) < toxics.commit_cut_percent;
            if is_last || toxics.affects(direction) {
                state.affected.fetch_add(1, Ordering::Relaxed);
            }
            let arrives_at = Instant::now() + toxics.delay();
            let bytes_per_second = toxics.bytes_per_second;
            if queue
                .send(Chunk { bytes, deliver_at: arrives_at, bytes_per_second, is_last })
                .await
                .is_err()
            {
                return;
            }
        }
    };
    let writing = async {
        while let Some(chunk) = due.recv().await {
            sleep_until(chunk.deliver_at).await;
            wait_until_open(&mut toxics_changes, direction).await;
            if to.write_all(&chunk.bytes).await.is_err() {
                return ConnectionEnd::Closed;
            }
            let count = chunk.bytes.len();
            state.bytes_forwarded.fetch_add(count as u64, Ordering::Relaxed);
            if chunk.is_last {
                return ConnectionEnd::AfterCommit;
            }
            if let Some(rate) = chunk.bytes_per_second {
                sleep(Duration::from_secs_f64(count as f64 / f64::from(rate.max(1)))).await;
            }
        }
        // The end of a connection is delayed like the bytes.
        wait_until_open(&mut toxics_changes, direction).await;
        ConnectionEnd::Closed
    };
    let reading = async {
        reading.await;
        std::future::pending::<ConnectionEnd>().await
    };
    tokio::select! {
        ended = writing => ended,
        ended = reading => ended,
    }
}

async fn wait_until_open(toxics: &mut watch::Receiver<Toxics>, direction: Direction) {
    let _ = toxics.wait_for(|toxics| direction.is_open(toxics)).await;
}

/// Finds Postgres' `COMMIT` in a simple query or a prepared statement, even if it is split between
/// two chunks.
#[derive(Default)]
struct CommitScanner {
    tail: Vec<u8>,
}

impl CommitScanner {
    fn contains_commit(&mut self, bytes: &[u8]) -> bool {
        const COMMIT: &[u8] = b"COMMIT";
        self.tail.extend_from_slice(bytes);
        let found = self.tail.windows(COMMIT.len()).any(|word| word == COMMIT);
        let kept = if found { 0 } else { self.tail.len().min(COMMIT.len() - 1) };
        self.tail.drain(..self.tail.len() - kept);
        found
    }
}
