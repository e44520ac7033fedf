//! A TCP proxy between a service and something that it depends on, which can be made to fail in the
//! ways that a network fails, while connections live.
//!
//! What is held is kept and arrives when the way is open again, as TCP's own repeats would have it;
//! that goes for the end of a connection too. Of a reset, nothing arrives any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use rand::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::ports;
use crate::topology::HOST;

/// Bytes taken in at a time, and pieces of them on their way in one direction at most: beyond that
/// the sender feels that nobody reads.
const PIECE_BYTES: usize = 16 * 1024;
const PIECES_MAX: usize = 64;

/// How often a port is asked for that somebody else may have for a moment.
const BIND_EVERY: Duration = Duration::from_millis(50);
const BIND_WITHIN: Duration = Duration::from_secs(5);

/// How long a server has to answer the commit whose answer nobody will hear.
const ANSWERED_WITHIN: Duration = Duration::from_secs(5);

/// What becomes of what passes; by default nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Way {
    /// Each piece arrives so much later, give or take, in order all the same.
    pub latency: Duration,
    pub jitter: Duration,
    /// What the service sends does not arrive. With both, the way is a black hole.
    pub holds_requests: bool,
    /// What is sent to the service does not arrive.
    pub holds_answers: bool,
    /// In each direction of each connection.
    pub bytes_per_second: Option<u32>,
    /// Nobody listens; connections that there are go on.
    pub refuses: bool,
    /// So many commits of a hundred reach the server, and their answers are cut off.
    pub commits_cut_percent: u32,
}

impl Way {
    pub fn black_hole() -> Way {
        Way { holds_requests: true, holds_answers: true, ..Way::default() }
    }

    /// Whether it does something to whatever passes in this direction.
    fn strikes(&self, direction: Direction) -> bool {
        let delays = !(self.latency + self.jitter).is_zero();
        delays || self.bytes_per_second.is_some() || !direction.is_open(self)
    }

    fn delay(&self) -> Duration {
        if self.jitter.is_zero() {
            return self.latency;
        }
        let jitter = rand::rng().random_range(Duration::ZERO..=self.jitter * 2);
        (self.latency + jitter).saturating_sub(self.jitter)
    }
}

/// A way to one server. It is gone, and all its connections with it, when this is dropped.
pub struct Proxy {
    pub port: u16,
    lines: Lines,
    accepting: JoinHandle<()>,
}

/// What all connections of a proxy share.
#[derive(Clone)]
struct Lines {
    way: watch::Sender<Way>,
    /// Counts the resets: each ends all connections that there are.
    resets: watch::Sender<u64>,
    commits_cut: Arc<AtomicU64>,
    carried: Arc<AtomicU64>,
    struck: Arc<AtomicU64>,
}

impl Proxy {
    /// To a server, `127.0.0.1:5432`, which need not be there yet.
    pub async fn to(server: String) -> Result<Proxy> {
        let listener = ports::listener_of_a_proxy()?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let port = listener.local_addr()?.port();
        let lines = Lines {
            way: watch::Sender::new(Way::default()),
            resets: watch::Sender::new(0),
            commits_cut: Arc::default(),
            carried: Arc::default(),
            struck: Arc::default(),
        };
        let accepting = tokio::spawn(accept(listener, port, server, lines.clone()));
        Ok(Proxy { port, lines, accepting })
    }

    pub fn address(&self) -> String {
        format!("{HOST}:{}", self.port)
    }

    pub fn set(&self, way: Way) {
        self.lines.way.send_replace(way);
    }

    pub fn heal(&self) {
        self.set(Way::default());
    }

    /// Ends every connection that there is, at once and by RST to both sides.
    pub fn reset(&self) {
        // Each connection listens for it.
        let there = self.lines.resets.receiver_count() as u64;
        self.lines.struck.fetch_add(there, Ordering::Relaxed);
        self.lines.resets.send_modify(|count| *count += 1);
    }

    /// How many commits were cut off so far, and how many bytes were carried.
    pub fn commits_cut(&self) -> u64 {
        self.lines.commits_cut.load(Ordering::Relaxed)
    }

    pub fn carried(&self) -> u64 {
        self.lines.carried.load(Ordering::Relaxed)
    }

    /// How often a fault of the way struck something: pieces that came while it was slow, narrow or
    /// held them, connections that were reset, commits that were cut off.
    pub fn struck(&self) -> u64 {
        self.lines.struck.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, port: u16, server: String, lines: Lines) {
    let (mut listening, mut way) = (Some(listener), lines.way.subscribe());
    let mut connections = JoinSet::new();
    loop {
        let Some(listener) = &listening else {
            if way.wait_for(|way| !way.refuses).await.is_err() {
                return;
            }
            listening = bind(port).await;
            continue;
        };
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let (server, lines) = (server.clone(), lines.clone());
                // A reset ends whoever is in, also while the server is still being reached.
                let resets = lines.resets.subscribe();
                connections.spawn(async move {
                    // It may have come to refuse between the connection and its acceptance.
                    let refuses = lines.way.borrow().refuses;
                    match TcpStream::connect(&server).await {
                        Ok(server) if !refuses => carry(client, server, resets, &lines).await,
                        // As near to a refusal as somebody comes who has accepted already.
                        _ => drop(client.set_zero_linger()),
                    }
                });
            }
            refuses = way.wait_for(|way| way.refuses) => match refuses {
                Ok(_) => listening = None,
                Err(_) => return,
            },
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn bind(port: u16) -> Option<TcpListener> {
    let deadline = Instant::now() + BIND_WITHIN;
    while Instant::now() < deadline {
        if let Ok(listener) = TcpListener::bind((HOST, port)).await {
            return Some(listener);
        }
        sleep(BIND_EVERY).await;
    }
    None
}

/// How one connection ended.
enum Ended {
    Closed,
    Reset,
    AfterCommit,
}

async fn carry(
    mut client: TcpStream,
    mut server: TcpStream,
    mut resets: watch::Receiver<u64>,
    lines: &Lines,
) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let ended = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        tokio::select! {
            ended = pump(from_client, to_server, lines, Direction::Requests) => ended,
            ended = pump(from_server, to_client, lines, Direction::Answers) => ended,
            _ = resets.changed() => Ended::Reset,
        }
    };
    match ended {
        Ended::Closed => {}
        Ended::Reset => drop((client.set_zero_linger(), server.set_zero_linger())),
        Ended::AfterCommit => {
            lines.commits_cut.fetch_add(1, Ordering::Relaxed);
            drop((client.set_zero_linger(), client));
            // A reset could overtake the commit; the server reads it, answers, and then hears that
            // nobody is there.
            let _ = server.shutdown().await;
            let unheard =
                async { while server.read(&mut [0; 512]).await.is_ok_and(|read| read > 0) {} };
            let _ = timeout(ANSWERED_WITHIN, unheard).await;
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Direction {
    Requests,
    Answers,
}

impl Direction {
    fn is_open(self, way: &Way) -> bool {
        match self {
            Direction::Requests => !way.holds_requests,
            Direction::Answers => !way.holds_answers,
        }
    }
}

/// Bytes on their way.
struct Piece {
    bytes: Vec<u8>,
    arrives_at: Instant,
    bytes_per_second: Option<u32>,
    /// The connection is to end when it has arrived.
    is_last: bool,
}

/// Carries one direction until either end is closed.
async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    lines: &Lines,
    direction: Direction,
) -> Ended {
    let (taken, mut due) = mpsc::channel::<Piece>(PIECES_MAX);
    let mut ways = lines.way.subscribe();
    let reading = async move {
        let (mut bytes, mut commits) = (vec![0; PIECE_BYTES], Commits::default());
        while let Ok(count @ 1..) = from.read(&mut bytes).await {
            let way = *lines.way.borrow();
            let bytes = bytes[..count].to_vec();
            let is_last = direction == Direction::Requests
                && commits.is_in(&bytes)
                && rand::random_range(0..100) < way.commits_cut_percent;
            if is_last || way.strikes(direction) {
                lines.struck.fetch_add(1, Ordering::Relaxed);
            }
            let arrives_at = Instant::now() + way.delay();
            let bytes_per_second = way.bytes_per_second;
            if taken.send(Piece { bytes, arrives_at, bytes_per_second, is_last }).await.is_err() {
                return;
            }
        }
    };
    let writing = async {
        while let Some(piece) = due.recv().await {
            sleep_until(piece.arrives_at).await;
            opened(&mut ways, direction).await;
            if to.write_all(&piece.bytes).await.is_err() {
                return Ended::Closed;
            }
            let count = piece.bytes.len();
            lines.carried.fetch_add(count as u64, Ordering::Relaxed);
            if piece.is_last {
                return Ended::AfterCommit;
            }
            if let Some(rate) = piece.bytes_per_second {
                sleep(Duration::from_secs_f64(count as f64 / f64::from(rate.max(1)))).await;
            }
        }
        // The end of a connection is held like everything else.
        opened(&mut ways, direction).await;
        Ended::Closed
    };
    let reading = async {
        reading.await;
        std::future::pending::<Ended>().await
    };
    tokio::select! {
        ended = writing => ended,
        ended = reading => ended,
    }
}

async fn opened(ways: &mut watch::Receiver<Way>, direction: Direction) {
    let _ = ways.wait_for(|way| direction.is_open(way)).await;
}

/// Looks for Postgres' `COMMIT`, in a simple query or in one that is prepared, also where it is
/// spread over two pieces.
#[derive(Default)]
struct Commits {
    tail: Vec<u8>,
}

impl Commits {
    fn is_in(&mut self, bytes: &[u8]) -> bool {
        const WORD: &[u8] = b"COMMIT";
        self.tail.extend_from_slice(bytes);
        let found = self.tail.windows(WORD.len()).any(|word| word == WORD);
        let kept = if found { 0 } else { self.tail.len().min(WORD.len() - 1) };
        self.tail.drain(..self.tail.len() - kept);
        found
    }
}

#[cfg(test)]
#[path = "proxy_tests.rs"]
mod tests;
