//! A TCP proxy between a service and one of its dependencies. It fails as networks fail, while
//! connections stay open.
//!
//! Held bytes arrive when the link opens again, as with TCP's own retransmissions, and so does the
//! end of a connection. After a reset nothing arrives.

mod forward;
mod toxics;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::Result;
use launcher::{HOST, bind_free_port};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep};

use crate::faulty_network::forward::{ProxyState, forward_connection};
pub use crate::faulty_network::toxics::Toxics;

/// How often the proxy tries to bind a port that another program may hold for a moment.
const BIND_INTERVAL: Duration = Duration::from_millis(50);
const BIND_TIMEOUT: Duration = Duration::from_secs(5);

/// A proxy to one server. It ends, with all its connections, when it is dropped.
pub struct Proxy {
    /// The port on which it listens.
    pub port: u16,
    state: ProxyState,
    accept_task: JoinHandle<()>,
}

impl Proxy {
    /// A proxy to a server such as `127.0.0.1:5432`, which need not run yet.
    pub async fn start(server: String) -> Result<Proxy> {
        let listener = bind_free_port()?;
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

    /// Its own address, such as `127.0.0.1:12345`.
    pub fn address(&self) -> String {
        format!("{HOST}:{}", self.port)
    }

    /// Replaces its toxics. Open connections get the new ones at once.
    pub fn set_toxics(&self, toxics: Toxics) {
        self.state.toxics.send_replace(toxics);
    }

    /// Removes its toxics.
    pub fn heal(&self) {
        self.set_toxics(Toxics::default());
    }

    /// Resets every open connection on both sides.
    pub fn reset_connections(&self) {
        // Each connection waits for this signal.
        let open = self.state.resets.receiver_count() as u64;
        self.state.affected.fetch_add(open, Ordering::Relaxed);
        self.state.resets.send_modify(|count| *count += 1);
    }

    /// The number of commits that were cut off so far.
    pub fn commits_cut(&self) -> u64 {
        self.state.commits_cut.load(Ordering::Relaxed)
    }

    /// The number of bytes that were forwarded so far, in both directions.
    pub fn bytes_forwarded(&self) -> u64 {
        self.state.bytes_forwarded.load(Ordering::Relaxed)
    }

    /// How often a toxic had an effect: chunks during latency, a bandwidth limit or a closed link,
    /// connections that were reset, commits that were cut off.
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
                // A reset also ends a connection whose server is still being reached.
                let resets = state.resets.subscribe();
                connections.spawn(async move {
                    // The proxy may have begun to refuse connections in the meantime.
                    let refuses = state.toxics.borrow().refuses_connections;
                    match TcpStream::connect(&server).await {
                        Ok(server) if !refuses => forward_connection(client, server, resets, &state).await,
                        // The connection is already accepted, so a reset is the closest to a
                        // refusal.
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
