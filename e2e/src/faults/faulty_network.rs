//! A TCP proxy between a service and one of its dependencies. It can fail in the ways in which a network fails,
//! while connections live.
//!
//! Bytes that are held back arrive when the link is open again, as TCP's own retransmissions would have it, and so
//! does the end of a connection. After a reset nothing arrives.

mod forward;
mod toxics;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use crate::faults::faulty_network::forward::{ProxyState, forward_connection};
pub use crate::faults::faulty_network::toxics::Toxics;
use crate::launcher::ports;
use crate::launcher::topology::HOST;

/// How often the proxy tries to bind a port that another program may have for a moment.
const BIND_INTERVAL: Duration = Duration::from_millis(50);
const BIND_TIMEOUT: Duration = Duration::from_secs(5);

/// A proxy to one server. It ends, with all its connections, when this is dropped.
pub struct Proxy {
    pub port: u16,
    state: ProxyState,
    accept_task: JoinHandle<()>,
}

impl Proxy {
    /// To a server, `127.0.0.1:5432`, which need not be there yet.
    pub async fn start(server: String) -> Result<Proxy> {
        let listener = ports::bind_free_port()?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let port = listener.local_addr()?.port();
        let state = ProxyState {
            toxics: watch::Sender::new(Toxics::default()),
            resets: watch::Sender::new(0),
            commits_cut: Arc::default(),
            bytes_forwarded: Arc::default(),
            affected: Arc::default(),
        };
        let accepting = tokio::spawn(accept_connections(listener, port, server, state.clone()));
        Ok(Proxy { port, state, accept_task: accepting })
    }

    pub fn address(&self) -> String {
        format!("{HOST}:{}", self.port)
    }

    pub fn set_toxics(&self, toxics: Toxics) {
        self.state.toxics.send_replace(toxics);
    }

    pub fn heal(&self) {
        self.set_toxics(Toxics::default());
    }

    /// Ends every connection that there is, at once and by RST to both sides.
    pub fn reset_connections(&self) {
        // Each connection listens for it.
        let open = self.state.resets.receiver_count() as u64;
        self.state.affected.fetch_add(open, Ordering::Relaxed);
        self.state.resets.send_modify(|count| *count += 1);
    }

    /// How many commits were cut off so far, and how many bytes were carried.
    pub fn commits_cut(&self) -> u64 {
        self.state.commits_cut.load(Ordering::Relaxed)
    }

    pub fn bytes_forwarded(&self) -> u64 {
        self.state.bytes_forwarded.load(Ordering::Relaxed)
    }

    /// How often a toxic had an effect: chunks that came while the link was slow, narrow or closed, connections
    /// that were reset, commits that were cut off.
    pub fn affected(&self) -> u64 {
        self.state.affected.load(Ordering::Relaxed)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accept_task.abort();
    }
}

async fn accept_connections(listener: TcpListener, port: u16, server: String, state: ProxyState) {
    let (mut listening, mut toxics) = (Some(listener), state.toxics.subscribe());
    let mut connections = JoinSet::new();
    loop {
        let Some(listener) = &listening else {
            if toxics.wait_for(|toxics| !toxics.refuses_connections).await.is_err() {
                return;
            }
            listening = rebind(port).await;
            continue;
        };
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                let (server, state) = (server.clone(), state.clone());
                // A reset ends every connection, also while the server is still being reached.
                let resets = state.resets.subscribe();
                connections.spawn(async move {
                    // It may have come to refuse between the connection and its acceptance.
                    let refuses = state.toxics.borrow().refuses_connections;
                    match TcpStream::connect(&server).await {
                        Ok(server) if !refuses => forward_connection(client, server, resets, &state).await,
                        // The connection is accepted already: a reset comes nearest to a refusal.
                        _ => drop(client.set_zero_linger()),
                    }
                });
            }
            refuses = toxics.wait_for(|toxics| toxics.refuses_connections) => match refuses {
                Ok(_) => listening = None,
                Err(_) => return,
            },
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn rebind(port: u16) -> Option<TcpListener> {
    let deadline = Instant::now() + BIND_TIMEOUT;
    while Instant::now() < deadline {
        if let Ok(listener) = TcpListener::bind((HOST, port)).await {
            return Some(listener);
        }
        sleep(BIND_INTERVAL).await;
    }
    None
}

#[cfg(test)]
mod tests;
