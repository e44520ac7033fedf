//! Passes the connections of some ports to the instances of a service, each to one of them. In docker compose it
//! publishes the ports of a service that may have several containers.

use std::time::Duration;

use anyhow::{Context, Result};
use rand::seq::SliceRandom;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// An instance that takes longer is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// Options of a forward.
#[derive(Debug, clap::Args)]
pub struct ForwardOptions {
    /// The name of the service, which has the addresses of its instances
    #[arg(long)]
    to: String,
    /// The ports, the same on both sides
    ports: Vec<u16>,
}

/// Forwards until SIGTERM.
pub async fn run(options: &ForwardOptions) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    for port in &options.ports {
        let listener = TcpListener::bind(("0.0.0.0", *port)).await;
        let listener = listener.with_context(|| format!("cannot listen on {port}"))?;
        tokio::spawn(forward(listener, options.to.clone(), *port));
    }
    terminate.recv().await;
    Ok(())
}

/// Passes each connection on. One that no instance takes is closed.
async fn forward(listener: TcpListener, host: String, port: u16) {
    loop {
        let Ok((mut client, _)) = listener.accept().await else { continue };
        let host = host.clone();
        tokio::spawn(async move {
            if let Some(mut server) = connect(&host, port).await {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}

/// A connection to any instance: a name has one address for each, and they come and go.
async fn connect(host: &str, port: u16) -> Option<TcpStream> {
    let mut addresses: Vec<_> = lookup_host((host, port)).await.ok()?.collect();
    addresses.shuffle(&mut rand::rng());
    for address in addresses {
        if let Ok(Ok(server)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            return Some(server);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// `localhost` may have two addresses, of which one has no listener.
    #[tokio::test]
    async fn a_connection_reaches_an_instance_and_is_closed_if_there_is_none() {
        let server = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = server.local_addr().unwrap().port();
        let entrance = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = entrance.local_addr().unwrap();
        tokio::spawn(forward(entrance, "localhost".to_string(), port));

        let mut client = TcpStream::connect(address).await.unwrap();
        client.write_all(b"ping").await.unwrap();
        let (mut passed, _) = server.accept().await.unwrap();
        let mut received = [0; 4];
        passed.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"ping");
        passed.write_all(b"pong").await.unwrap();
        drop(passed);
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"pong");

        drop(server);
        let mut client = TcpStream::connect(address).await.unwrap();
        assert_eq!(client.read(&mut received).await.unwrap(), 0);
    }
}
