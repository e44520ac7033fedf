//! A TCP proxy between a fixture and its servers that can interrupt connections.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A proxy to a server that can refuse connections and drop commits.
pub struct Proxy {
    pub port: u16,
    pub mode: Arc<watch::Sender<ProxyMode>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ProxyMode {
    PassThrough,
    Refuse,
    /// Established connections stay open and transfer nothing more.
    Blackhole,
    /// The next commit is dropped before it reaches the server; then traffic passes again.
    DropCommit,
    /// The next commit reaches the server and its reply is dropped; then traffic passes again.
    DropCommitReply,
    /// The same, and further connections are refused.
    DropCommitReplyAndRefuse,
}

impl Proxy {
    pub async fn new(server: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mode = Arc::new(watch::Sender::new(ProxyMode::PassThrough));
        let modes = mode.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let refuses = *modes.borrow() == ProxyMode::Refuse;
                if !refuses && let Ok(server) = TcpStream::connect(&server).await {
                    tokio::spawn(forward(client, server, modes.clone()));
                }
            }
        });
        Proxy { port, mode }
    }

    pub fn set_mode(&self, mode: ProxyMode) {
        self.mode.send_replace(mode);
    }
}

/// Ends, and closes the connection, in mode `Refuse` or when a commit is dropped.
async fn forward(
    mut client: TcpStream,
    mut server: TcpStream,
    modes: Arc<watch::Sender<ProxyMode>>,
) {
    let (mut sent, mut answered) = ([0; 16 * 1024], [0; 16 * 1024]);
    let mut changes = modes.subscribe();
    loop {
        // In this order: nothing that is sent after a change of the mode may pass.
        tokio::select! {
            biased;
            mode = wait_until_cut(&mut changes) => match mode {
                ProxyMode::Blackhole => std::future::pending().await,
                _ => return,
            },
            Ok(bytes) = client.read(&mut sent) => {
                let commits = sent[..bytes].windows(6).any(|word| word == b"COMMIT");
                let mode = *modes.borrow();
                let then = match mode {
                    ProxyMode::DropCommit | ProxyMode::DropCommitReply if commits => Some(ProxyMode::PassThrough),
                    ProxyMode::DropCommitReplyAndRefuse if commits => Some(ProxyMode::Refuse),
                    _ => None,
                };
                let passes = mode != ProxyMode::DropCommit || then.is_none();
                if bytes == 0 || passes && server.write_all(&sent[..bytes]).await.is_err() {
                    return;
                }
                if let Some(then) = then {
                    modes.send_replace(then);
                    return;
                }
            }
            Ok(bytes) = server.read(&mut answered) => {
                if bytes == 0 || client.write_all(&answered[..bytes]).await.is_err() {
                    return;
                }
            }
            else => return,
        }
    }
}

async fn wait_until_cut(changes: &mut watch::Receiver<ProxyMode>) -> ProxyMode {
    let is_cut = |mode: &ProxyMode| matches!(mode, ProxyMode::Refuse | ProxyMode::Blackhole);
    changes.wait_for(is_cut).await.map_or(ProxyMode::Refuse, |mode| *mode)
}
