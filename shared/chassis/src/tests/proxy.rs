//! What stands between a till and its servers, where a test wants the way to be cut.

use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// A way to a server that can be shut, and that can lose a commit.
pub struct Proxy {
    pub port: u16,
    pub way: Arc<watch::Sender<Way>>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Way {
    Open,
    Shut,
    /// Whoever is connected hears nothing ever again, not even that the connection is gone.
    Silent,
    /// The next commit is cut off before the server gets it; then the way is open again.
    LosesCommit,
    /// The next commit reaches the server and its answer is cut off; then the way is open again.
    LosesAnswer,
    /// The same, and the way is shut.
    LosesAnswerAndShuts,
}

impl Proxy {
    pub async fn to(server: String) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let way = Arc::new(watch::Sender::new(Way::Open));
        let ways = way.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let is_shut = *ways.borrow() == Way::Shut;
                if !is_shut && let Ok(server) = TcpStream::connect(&server).await {
                    tokio::spawn(carry(client, server, ways.clone()));
                }
            }
        });
        Proxy { port, way }
    }

    pub fn set(&self, way: Way) {
        self.way.send_replace(way);
    }
}

/// Ends, and with it the connection, when the way is shut or a commit is to be lost.
async fn carry(mut client: TcpStream, mut server: TcpStream, ways: Arc<watch::Sender<Way>>) {
    let (mut sent, mut answered) = ([0; 16 * 1024], [0; 16 * 1024]);
    let mut changes = ways.subscribe();
    loop {
        // In this order: nothing that is sent after the way was cut may pass by chance.
        tokio::select! {
            biased;
            way = cut(&mut changes) => match way {
                Way::Silent => std::future::pending().await,
                _ => return,
            },
            Ok(bytes) = client.read(&mut sent) => {
                let commits = sent[..bytes].windows(6).any(|word| word == b"COMMIT");
                let way = *ways.borrow();
                let then = match way {
                    Way::LosesCommit | Way::LosesAnswer if commits => Some(Way::Open),
                    Way::LosesAnswerAndShuts if commits => Some(Way::Shut),
                    _ => None,
                };
                let passes = way != Way::LosesCommit || then.is_none();
                if bytes == 0 || passes && server.write_all(&sent[..bytes]).await.is_err() {
                    return;
                }
                if let Some(then) = then {
                    ways.send_replace(then);
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

async fn cut(changes: &mut watch::Receiver<Way>) -> Way {
    let is_cut = |way: &Way| matches!(way, Way::Shut | Way::Silent);
    changes.wait_for(is_cut).await.map_or(Way::Shut, |way| *way)
}
